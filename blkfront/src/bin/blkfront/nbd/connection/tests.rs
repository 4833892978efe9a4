use super::*;
use crate::nbd::wire::flag;

const EXPORT: Export =
    Export { size: 1 << 20, flags: flag::HAS_FLAGS, sector_size: 512, preferred: 4096 };

struct Client(Connection);

impl Client {
    fn new() -> Self {
        let mut client = Self(Connection::new(EXPORT, "xvda"));
        let hello = client.take();
        assert_eq!(&hello[..8], b"NBDMAGIC");
        assert_eq!(&hello[8..16], b"IHAVEOPT");
        assert_eq!(hello[16..], [0, 3]);
        client
    }

    /// Sends bytes, as many at a time as the state wants; gives the commands and how it ended.
    fn send(&mut self, mut bytes: &[u8]) -> (Vec<Command>, Option<Over>) {
        let mut commands = Vec::new();
        while !bytes.is_empty() {
            let room = self.0.room();
            let count = room.len().min(bytes.len());
            assert!(count > 0, "there is always room");
            room[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            match self.0.filled(count) {
                Ok(command) => commands.extend(command),
                Err(over) => return (commands, Some(over)),
            }
        }
        (commands, None)
    }

    fn take(&mut self) -> Vec<u8> {
        let bytes = self.0.output().to_vec();
        self.0.sent(bytes.len());
        bytes
    }

    fn option(&mut self, kind: u32, data: &[u8]) -> (Vec<u8>, Option<Over>) {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend(kind.to_be_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(data);
        let (commands, over) = self.send(&bytes);
        assert!(commands.is_empty());
        (self.take(), over)
    }
}

fn request(kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

fn go(client: &mut Client) {
    client.send(&[0, 0, 0, 3]);
    let (said, over) = client.option(option::GO, &[0, 0, 0, 0, 0, 0]);
    assert_eq!(over, None);
    assert_eq!(said[said.len() - 12..said.len() - 4], [0, 0, 0, 7, 0, 0, 0, 1], "an ACK of GO");
}

#[test]
fn options_are_answered_and_unknown_ones_refused() {
    let mut client = Client::new();
    client.send(&[0, 0, 0, 3]);
    let (said, over) = client.option(option::LIST, &[]);
    assert_eq!(over, None);
    assert!(said.windows(8).any(|w| w == b"\0\0\0\x04xvda"), "the list has the name: {said:?}");
    let (said, over) = client.option(5, &[]);
    assert_eq!((over, &said[12..16]), (None, &[0x80, 0, 0, 1][..]));
    let (said, _) = client.option(option::INFO, b"\0\0\0\x04none\0\0");
    assert_eq!(said[12..16], [0x80, 0, 0, 6]);
    let (said, _) = client.option(option::INFO, b"\0\0\0\x04xvda\0\x01\0\x01");
    assert!(said.windows(6).any(|w| w == b"\0\x01xvda"));
    let (_, over) = client.option(option::ABORT, &[]);
    assert_eq!(over, Some(Over::Goodbye));
}

#[test]
fn an_export_name_starts_transmission_with_and_without_padding() {
    for (flags, len) in [([0, 0, 0, 3], 10), ([0, 0, 0, 1], 134)] {
        let mut client = Client::new();
        client.send(&flags);
        let (said, over) = client.option(option::EXPORT_NAME, b"xvda");
        assert_eq!((said.len(), over), (len, None));
        assert_eq!(said[..8], (1_u64 << 20).to_be_bytes());
        let (commands, _) = client.send(&request(command::READ, 7, 512, 1024));
        assert_eq!(commands.len(), 1);
    }
    let mut client = Client::new();
    client.send(&[0, 0, 0, 3]);
    let (_, over) = client.option(option::EXPORT_NAME, b"other");
    assert!(matches!(over, Some(Over::Nonsense(_))));
}

#[test]
fn commands_come_with_their_data() {
    let mut client = Client::new();
    go(&mut client);
    let mut bytes = request(command::WRITE, 1, 0, 512);
    bytes.extend([9; 512]);
    bytes.extend(request(command::FLUSH, 2, 0, 0));
    bytes.extend(request(command::DISCONNECT, 3, 0, 0));
    let (commands, over) = client.send(&bytes);
    assert_eq!(over, Some(Over::Goodbye));
    assert_eq!(commands.len(), 2);
    assert_eq!(commands[0].data, [9; 512]);
    assert_eq!(commands[1].header.cookie, 2);
    client.0.answer(2, Err(errno::IO));
    assert_eq!(
        client.take(),
        [&b"\x67\x44\x66\x98"[..], &[0, 0, 0, 5], &2_u64.to_be_bytes()].concat()
    );
}

#[test]
fn what_cannot_be_asked_is_refused() {
    let client = Client::new();
    let header = |kind, offset, len| Header { flags: 0, kind, cookie: 0, offset, len };
    let end = 1 << 20;
    for (asked, answer) in [
        (header(command::READ, 0, 512), Ok(())),
        (header(command::READ, end - 512, 512), Ok(())),
        (header(command::READ, end, 512), Err(errno::INVALID)),
        (header(command::WRITE, end - 512, 1024), Err(errno::NO_SPACE)),
        (header(command::READ, u64::MAX - 511, 512), Err(errno::INVALID)),
        (header(command::READ, 1, 512), Err(errno::INVALID)),
        (header(command::READ, 0, 100), Err(errno::INVALID)),
        (header(command::READ, 0, 0), Err(errno::INVALID)),
        (header(command::FLUSH, 0, 0), Ok(())),
        (header(99, 0, 0), Err(errno::NOT_SUPPORTED)),
    ] {
        assert_eq!(client.0.check(&asked), answer, "{asked:?}");
    }
    let export = Export { flags: EXPORT.flags | flag::READ_ONLY, ..EXPORT };
    let client = Connection::new(export, "xvda");
    assert_eq!(client.check(&header(command::WRITE, 0, 512)), Err(errno::PERMISSION));
    assert_eq!(client.check(&header(command::READ, 0, 512)), Ok(()));
}

#[test]
fn nonsense_ends_the_connection_before_memory_is_taken_for_it() {
    let mut client = Client::new();
    assert!(matches!(client.send(&[0xff; 4]).1, Some(Over::Nonsense(_))));
    let mut client = Client::new();
    client.send(&[0, 0, 0, 3]);
    assert!(matches!(client.send(&[0; 16]).1, Some(Over::Nonsense(_))));
    let mut client = Client::new();
    client.send(&[0, 0, 0, 3]);
    let huge = [&OPTION_MAGIC.to_be_bytes()[..], &[0, 0, 0, 7], &[0xff; 4]].concat();
    assert!(matches!(client.send(&huge).1, Some(Over::Nonsense(_))));
    let mut client = Client::new();
    go(&mut client);
    assert!(matches!(
        client.send(&request(command::WRITE, 0, 0, u32::MAX)).1,
        Some(Over::Nonsense(_))
    ));
    let mut client = Client::new();
    go(&mut client);
    assert!(matches!(client.send(&[0; 28]).1, Some(Over::Nonsense(_))));
}
