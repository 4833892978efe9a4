//! One client, without its socket: bytes go in, commands and bytes come out.
//!
//! A client is not trusted. Each state needs a certain number of bytes, which is bounded before
//! memory is taken for it, and how many commands a client may have under way is bounded by whoever
//! feeds it. Nonsense ends its connection and nobody else's.

use crate::nbd::wire::{
    Export, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, Header, INIT_MAGIC, MOST, MOST_OPTION,
    OPTION_MAGIC, OPTION_REPLY_MAGIC, REPLY_MAGIC, REQUEST, Reader, command, errno, info, option,
    reply,
};

/// What a client wants done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) header: Header,
    /// What is to be written.
    pub(crate) data: Vec<u8>,
}

/// Why a connection is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Over {
    /// The client said goodbye.
    Goodbye,
    /// It talked nonsense.
    Nonsense(&'static str),
}

enum State {
    Flags,
    Option,
    OptionData { kind: u32 },
    Request,
    Data(Header),
}

pub(crate) struct Connection {
    export: Export,
    name: String,
    state: State,
    /// The bytes that the state needs, of which the first `filled` are there.
    input: Vec<u8>,
    filled: usize,
    /// What is to be sent, of which the first `sent` bytes are.
    output: Vec<u8>,
    sent: usize,
    padding: bool,
}

impl Connection {
    /// Greets a client of the export called `name`.
    pub(crate) fn new(export: Export, name: &str) -> Self {
        let mut connection = Self {
            export,
            name: name.to_owned(),
            state: State::Flags,
            input: vec![0; 4],
            filled: 0,
            output: Vec::new(),
            sent: 0,
            padding: true,
        };
        connection.put(&INIT_MAGIC.to_be_bytes());
        connection.put(&OPTION_MAGIC.to_be_bytes());
        connection.put(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        connection
    }

    /// Where the next bytes from the client go. Never empty.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.input.get_mut(self.filled..).unwrap_or_default()
    }

    /// `count` bytes of the room were filled. Gives a command if that completed one.
    pub(crate) fn filled(&mut self, count: usize) -> Result<Option<Command>, Over> {
        self.filled = self.filled.saturating_add(count);
        if self.filled < self.input.len() {
            return Ok(None);
        }
        let input = std::mem::take(&mut self.input);
        self.filled = 0;
        let state = std::mem::replace(&mut self.state, State::Request);
        match state {
            State::Flags => {
                let flags = Reader(&input).u32().unwrap_or(0);
                if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
                    return Err(Over::Nonsense("unknown client flags"));
                }
                self.padding = flags & u32::from(FLAG_NO_ZEROES) == 0;
                self.expect(State::Option, 16);
                Ok(None)
            }
            State::Option => {
                let mut reader = Reader(&input);
                let (magic, kind, len) = (reader.u64(), reader.u32(), reader.u32());
                if magic != Some(OPTION_MAGIC) {
                    return Err(Over::Nonsense("an option that does not begin as one"));
                }
                let (kind, len) = (kind.unwrap_or(0), len.unwrap_or(0));
                if len > MOST_OPTION {
                    self.option_reply(kind, reply::ERR_TOO_BIG, b"option is too long");
                    return Err(Over::Nonsense("an option that is too long"));
                }
                if len == 0 {
                    return self.option(kind, &[]).map(|()| None);
                }
                self.expect(State::OptionData { kind }, len as usize);
                Ok(None)
            }
            State::OptionData { kind } => self.option(kind, &input).map(|()| None),
            State::Request => {
                let header =
                    Header::parse(&input).ok_or(Over::Nonsense("a request without its magic"))?;
                match header.kind {
                    command::DISCONNECT => Err(Over::Goodbye),
                    command::WRITE if header.len > MOST => {
                        Err(Over::Nonsense("a write that is too long"))
                    }
                    command::WRITE if header.len > 0 => {
                        self.expect(State::Data(header), header.len as usize);
                        Ok(None)
                    }
                    _ => {
                        self.expect(State::Request, REQUEST);
                        Ok(Some(Command { header, data: Vec::new() }))
                    }
                }
            }
            State::Data(header) => {
                self.expect(State::Request, REQUEST);
                Ok(Some(Command { header, data: input }))
            }
        }
    }

    /// What is to be sent now.
    pub(crate) fn output(&self) -> &[u8] {
        self.output.get(self.sent..).unwrap_or_default()
    }

    /// `count` bytes of the output were sent.
    pub(crate) fn sent(&mut self, count: usize) {
        self.sent = self.sent.saturating_add(count);
        if self.sent >= self.output.len() {
            self.output.clear();
            self.sent = 0;
            // A large reply's memory is not kept for small ones.
            self.output.shrink_to(1 << 20);
        }
    }

    /// Answers a command: with what was read, or with an error number.
    pub(crate) fn answer(&mut self, cookie: u64, result: Result<&[u8], u32>) {
        self.put(&REPLY_MAGIC.to_be_bytes());
        self.put(&result.err().unwrap_or(0).to_be_bytes());
        self.put(&cookie.to_be_bytes());
        self.put(result.unwrap_or_default());
    }

    /// Whether `header` asks for something that can be asked of the export at all.
    pub(crate) fn check(&self, header: &Header) -> Result<(), u32> {
        let writes = matches!(header.kind, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if writes && self.export.flags & crate::nbd::wire::flag::READ_ONLY != 0 {
            return Err(errno::PERMISSION);
        }
        match header.kind {
            command::FLUSH => return Ok(()),
            command::READ if header.len > MOST => return Err(errno::INVALID),
            command::READ | command::WRITE | command::TRIM | command::WRITE_ZEROES => {}
            _ => return Err(errno::NOT_SUPPORTED),
        }
        let sector = u64::from(self.export.sector_size);
        let len = u64::from(header.len);
        if len == 0 || !len.is_multiple_of(sector) || !header.offset.is_multiple_of(sector) {
            return Err(errno::INVALID);
        }
        match header.offset.checked_add(len) {
            Some(end) if end <= self.export.size => Ok(()),
            _ if header.kind == command::WRITE => Err(errno::NO_SPACE),
            _ => Err(errno::INVALID),
        }
    }

    fn expect(&mut self, state: State, len: usize) {
        self.state = state;
        self.input = vec![0; len];
    }

    fn option(&mut self, kind: u32, data: &[u8]) -> Result<(), Over> {
        match kind {
            option::EXPORT_NAME => {
                if !self.is_name(data) {
                    // This option knows no error reply: the protocol has us hang up.
                    return Err(Over::Nonsense("an export name that does not exist"));
                }
                self.put(&self.export.size.to_be_bytes());
                self.put(&self.export.flags.to_be_bytes());
                if self.padding {
                    self.put(&[0; 124]);
                }
                self.expect(State::Request, REQUEST);
                return Ok(());
            }
            option::ABORT => {
                self.option_reply(kind, reply::ACK, &[]);
                return Err(Over::Goodbye);
            }
            option::LIST if data.is_empty() => {
                let mut entry = Vec::new();
                put_name(&mut entry, &self.name);
                self.option_reply(kind, reply::SERVER, &entry);
                self.option_reply(kind, reply::ACK, &[]);
            }
            option::LIST => self.option_reply(kind, reply::ERR_INVALID, b"LIST takes no data"),
            option::INFO | option::GO => {
                if self.describe(kind, data) && kind == option::GO {
                    self.expect(State::Request, REQUEST);
                    return Ok(());
                }
            }
            _ => self.option_reply(kind, reply::ERR_UNSUPPORTED, b"option is not supported"),
        }
        self.expect(State::Option, 16);
        Ok(())
    }

    /// Answers `INFO` and `GO`; says whether the export asked for is ours.
    fn describe(&mut self, kind: u32, data: &[u8]) -> bool {
        let mut reader = Reader(data);
        let name = reader.u32().and_then(|len| reader.bytes(len as usize));
        let wanted = reader.u16().and_then(|count| reader.bytes(usize::from(count) * 2));
        let (Some(name), Some(wanted)) = (name, wanted) else {
            self.option_reply(kind, reply::ERR_INVALID, b"option is cut short");
            return false;
        };
        if !self.is_name(name) {
            self.option_reply(kind, reply::ERR_UNKNOWN, b"there is no such export");
            return false;
        }
        let mut export = info::EXPORT.to_be_bytes().to_vec();
        export.extend_from_slice(&self.export.size.to_be_bytes());
        export.extend_from_slice(&self.export.flags.to_be_bytes());
        self.option_reply(kind, reply::INFO, &export);
        if wanted.chunks(2).any(|wanted| wanted == info::NAME.to_be_bytes()) {
            let mut name = info::NAME.to_be_bytes().to_vec();
            name.extend_from_slice(self.name.as_bytes());
            self.option_reply(kind, reply::INFO, &name);
        }
        let mut sizes = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [self.export.sector_size, self.export.preferred, MOST] {
            sizes.extend_from_slice(&size.to_be_bytes());
        }
        self.option_reply(kind, reply::INFO, &sizes);
        self.option_reply(kind, reply::ACK, &[]);
        true
    }

    /// Whether a client means our export: by its name, or by none.
    fn is_name(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }

    fn option_reply(&mut self, kind: u32, what: u32, data: &[u8]) {
        self.put(&OPTION_REPLY_MAGIC.to_be_bytes());
        self.put(&kind.to_be_bytes());
        self.put(&what.to_be_bytes());
        self.put(&u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
        self.put(data);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }
}

fn put_name(to: &mut Vec<u8>, name: &str) {
    to.extend_from_slice(&u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
    to.extend_from_slice(name.as_bytes());
}

#[cfg(test)]
mod tests;
