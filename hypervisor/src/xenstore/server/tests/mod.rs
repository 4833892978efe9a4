//! The server by its messages, with no socket between.

mod hostile;
mod model;
mod permissions;
mod transactions;
mod watches;

use super::*;
use crate::xenstore::wire::{self, Kind, Parser};

/// A server, and what its connections were told of and have not looked at.
#[derive(Default)]
struct World {
    server: Server,
    news: BTreeMap<ConnId, Vec<String>>,
    last: u32,
}

type Answered = Result<String, Refusal>;

fn domain(number: u16) -> DomId {
    DomId::new(number).unwrap()
}

impl World {
    fn join(&mut self, number: u16) -> ConnId {
        self.server.connect(domain(number)).unwrap()
    }

    /// Sends a request without reading anything.
    fn send(&mut self, id: ConnId, kind: Kind, transaction: u32, payload: &[u8]) -> u32 {
        self.last += 1;
        let bytes = wire::encode(kind, self.last, transaction, &[payload]).unwrap();
        assert_eq!(self.server.handle(id, &bytes), Ok(bytes.len()));
        self.last
    }

    /// Reads all there is: replies are returned, events kept as `path token`.
    fn drain(&mut self, id: ConnId) -> Vec<wire::Message> {
        let mut parser = Parser::default();
        let mut replies = Vec::new();
        loop {
            let output = self.server.output(id).to_vec();
            if output.is_empty() {
                return replies;
            }
            self.server.sent(id, output.len());
            let mut rest = output.as_slice();
            while !rest.is_empty() {
                rest = &rest[parser.feed(rest).unwrap()..];
                let Some(message) = parser.take() else { continue };
                if message.header.kind == Kind::WatchEvent.number() {
                    let ([path, token], rest) = wire::strings(&message.payload).unwrap();
                    assert!(rest.is_empty());
                    assert_eq!((message.header.request, message.header.transaction), (0, 0));
                    let text = String::from_utf8([path, token].join(&b' ')).unwrap();
                    self.news.entry(id).or_default().push(text);
                } else {
                    replies.push(message);
                }
            }
        }
    }

    fn ask(&mut self, id: ConnId, kind: Kind, transaction: u32, payload: &str) -> Answered {
        let request = self.send(id, kind, transaction, payload.as_bytes());
        let replies = self.drain(id);
        let [reply] = replies.as_slice() else { panic!("{replies:?}") };
        assert_eq!((reply.header.request, reply.header.transaction), (request, transaction));
        if reply.header.kind == Kind::Error.number() {
            let name = reply.payload.strip_suffix(b"\0").unwrap();
            return Err(Refusal::from_name(name).unwrap());
        }
        assert_eq!(reply.header.kind, kind.number());
        Ok(String::from_utf8(reply.payload.clone()).unwrap())
    }

    fn read(&mut self, id: ConnId, path: &str) -> Answered {
        self.ask(id, Kind::Read, 0, &format!("{path}\0"))
    }

    fn write(&mut self, id: ConnId, path: &str, value: &str) -> Answered {
        self.ask(id, Kind::Write, 0, &format!("{path}\0{value}"))
    }

    fn remove(&mut self, id: ConnId, path: &str) -> Answered {
        self.ask(id, Kind::Rm, 0, &format!("{path}\0"))
    }

    fn allow(&mut self, id: ConnId, path: &str, list: &str) -> Answered {
        let list = list.replace(' ', "\0");
        self.ask(id, Kind::SetPerms, 0, &format!("{path}\0{list}\0"))
    }

    fn allowed(&mut self, id: ConnId, path: &str) -> Answered {
        let list = self.ask(id, Kind::GetPerms, 0, &format!("{path}\0"))?;
        Ok(list.trim_end_matches('\0').replace('\0', " "))
    }

    fn watch(&mut self, id: ConnId, path: &str, token: &str) -> Answered {
        self.ask(id, Kind::Watch, 0, &format!("{path}\0{token}\0"))
    }

    fn start(&mut self, id: ConnId) -> Result<u32, Refusal> {
        let text = self.ask(id, Kind::TransactionStart, 0, "\0")?;
        Ok(text.strip_suffix('\0').unwrap().parse().unwrap())
    }

    fn end(&mut self, id: ConnId, transaction: u32, commit: bool) -> Answered {
        self.ask(id, Kind::TransactionEnd, transaction, if commit { "T\0" } else { "F\0" })
    }

    /// What a connection was told since it last looked.
    fn news(&mut self, id: ConnId) -> Vec<String> {
        assert_eq!(self.drain(id), []);
        self.news.remove(&id).unwrap_or_default()
    }

    /// A domain that has a home of its own.
    fn guest(&mut self, zero: ConnId, number: u16) -> ConnId {
        let home = format!("/local/domain/{number}");
        self.write(zero, &home, "").unwrap();
        self.allow(zero, &home, &format!("n{number}")).unwrap();
        self.join(number)
    }
}
