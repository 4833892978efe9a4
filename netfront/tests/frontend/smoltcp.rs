//! Two smoltcp stacks that talk TCP to each other through two interfaces.

use ::smoltcp::iface::{self, SocketSet};
use ::smoltcp::socket::tcp;
use ::smoltcp::time::Instant;
use ::smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};
use hypervisor::embedded::Domain;
use hypervisor::testing::Machine;
use netfront::Interface;
use netfront::smoltcp::Phy;

use crate::backend::{Backend, DIRECTORY, Features, connect};

const BYTES: usize = 300_000;

struct Stack {
    phy: Phy<Domain>,
    interface: iface::Interface,
    sockets: SocketSet<'static>,
    socket: iface::SocketHandle,
    backend: Backend,
}

impl Stack {
    fn new(machine: &Machine, number: u8, features: Features) -> Self {
        let guest = machine.domain(&format!("guest{number}"));
        let name = format!("backend{number}");
        let mut backend = Backend::new(machine, &name, guest.id(), features);
        let mut interface = Interface::new(guest, DIRECTORY, Phy::<Domain>::config());
        connect(&mut interface, &mut backend);
        let mut phy = Phy::new(interface);
        let address = EthernetAddress([2, 0, 0, 0, 0, number]);
        let config = iface::Config::new(address.into());
        let mut interface = iface::Interface::new(config, &mut phy, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::v4(10, 0, 0, number), 24)).unwrap();
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; 65_535]);
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(tcp::Socket::new(buffer(), buffer()));
        Self { phy, interface, sockets, socket, backend }
    }

    fn poll(&mut self, now: Instant) {
        self.interface.poll(now, &mut self.phy, &mut self.sockets);
        self.backend.poll();
        assert!(self.phy.error().is_none() && self.phy.interface().ending().is_none());
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.socket)
    }
}

#[test]
fn tcp_goes_from_stack_to_stack() {
    for restarts in [false, true] {
        let machine = Machine::new();
        let mut client = Stack::new(&machine, 1, Features::default());
        let mut server = Stack::new(&machine, 2, Features::default());
        server.socket().listen(80).unwrap();
        let to = (IpAddress::v4(10, 0, 0, 2), 80);
        let Stack { interface, sockets, socket, .. } = &mut client;
        sockets
            .get_mut::<tcp::Socket<'_>>(*socket)
            .connect(interface.context(), to, 49_152)
            .unwrap();
        let data: Vec<u8> = (0..BYTES).map(|n| (n / 5 + n / 65_536) as u8).collect();
        let (mut sent, mut got) = (0, Vec::new());
        // Time goes on with every round, so that what is lost is sent again.
        for round in 0..200_000_i64 {
            let now = Instant::from_millis(round);
            if client.socket().can_send() && sent < BYTES {
                sent += client.socket().send_slice(&data[sent..]).unwrap();
            }
            client.poll(now);
            server.poll(now);
            for packet in std::mem::take(&mut client.backend.sent) {
                server.backend.give(0, &packet);
            }
            for packet in std::mem::take(&mut server.backend.sent) {
                client.backend.give(0, &packet);
            }
            if server.socket().can_recv() {
                server.socket().recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
            }
            if restarts && round == 20 {
                client.backend.restart();
                connect(client.phy.interface(), &mut client.backend);
            }
            if got.len() == BYTES {
                break;
            }
        }
        assert!(got == data, "{} of {BYTES} bytes came", got.len());
    }
}

#[test]
fn room_that_is_not_used_is_given_back() {
    use ::smoltcp::phy::Device as _;
    let machine = Machine::new();
    let mut stack = Stack::new(&machine, 1, Features::default());
    for _ in 0..1000 {
        assert!(stack.phy.transmit(Instant::ZERO).is_some());
    }
    assert!(stack.phy.receive(Instant::ZERO).is_none());
    assert_eq!(stack.phy.capabilities().max_transmission_unit, 9014);
}
