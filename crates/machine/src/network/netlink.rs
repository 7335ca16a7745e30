//! The few messages of the kernel's routing interface (rtnetlink) that are needed: one dump of the host's
//! addresses and routes, and the requests that set up the namespace.
//!
//! Layouts and numbers are the kernel's (`linux/netlink.h`, `rtnetlink.h`, `fib_rules.h`).

use std::net::Ipv4Addr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::{Network, Rule, Transport, Verdict};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTN_UNICAST: u8 = 1;
const RT_SCOPE_LINK: u8 = 253;
const RT_TABLE_MAIN: u8 = 254;
const FRA_DST: u16 = 1;
const FRA_PRIORITY: u16 = 6;
const FRA_IP_PROTO: u16 = 22;
const FRA_DPORT_RANGE: u16 = 24;
const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_UNREACHABLE: u8 = 7;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

const LOOPBACK_INDEX: i32 = 1;
const IFF_UP: u32 = 1;

const HEADER: usize = 16;

/// A wider connected route is a way to the internet (a VPN's `0.0.0.0/1`), not a network nearby.
const WIDEST_NEIGHBOURHOOD: u8 = 8;

/// One request that the kernel confirms.
#[derive(Debug)]
pub struct Request {
    message: Vec<u8>,
    /// What it is for, to name in an error.
    pub purpose: &'static str,
    /// A kernel without the protocol family has nothing to switch off.
    pub family_may_be_missing: bool,
}

pub fn open() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
}

/// The requests that bring the namespace's loopback up, make the rules and refuse all of IPv6, for which
/// there is no way out.
pub fn setup(rules: &[Rule]) -> Vec<Request> {
    let mut requests = vec![loopback_up()];
    // The kernel asks its own addresses first (priority 0) and the main table at 32766.
    requests.extend(rules.iter().zip(100..).map(|(rule, priority)| rule_request(rule, priority)));
    requests.push(refuse_ipv6());
    requests
}

/// Sends one request and reads its confirmation. Allocates nothing: it is called between fork and exec.
pub fn confirm(socket: BorrowedFd<'_>, request: &Request) -> rustix::io::Result<()> {
    rustix::net::send(socket, &request.message, SendFlags::empty())?;
    let mut reply = [0_u8; 512];
    let (length, _) = rustix::net::recv(socket, &mut reply, RecvFlags::empty())?;
    if length < HEADER + 4 || u16_at(&reply, 4) != NLMSG_ERROR {
        return Err(Errno::PROTO);
    }
    match i32_at(&reply, HEADER) {
        0 => Ok(()),
        negative => match Errno::from_raw_os_error(negative.saturating_neg()) {
            Errno::AFNOSUPPORT | Errno::OPNOTSUPP if request.family_may_be_missing => Ok(()),
            errno => Err(errno),
        },
    }
}

/// The IPv4 addresses of this host's interfaces, and the networks directly connected to them. The loopback
/// is left out: it is another one in the namespace.
pub fn host_networks() -> std::io::Result<Vec<Network>> {
    let socket = open()?;
    let mut networks = Vec::new();
    let mut ifaddrmsg = [0_u8; 8];
    ifaddrmsg[0] = AF_INET;
    dump(&socket, RTM_GETADDR, &ifaddrmsg, |kind, body| {
        if kind == RTM_NEWADDR && body.len() >= 8 {
            address_networks(body, &mut networks);
        }
    })?;
    let mut rtmsg = [0_u8; 12];
    rtmsg[0] = AF_INET;
    dump(&socket, RTM_GETROUTE, &rtmsg, |kind, body| {
        if kind == RTM_NEWROUTE && body.len() >= 12 {
            networks.extend(connected_route(body));
        }
    })?;
    networks.retain(|network| !network.address.is_loopback());
    Ok(networks)
}

fn address_networks(ifaddrmsg: &[u8], networks: &mut Vec<Network>) {
    let prefix = ifaddrmsg[1];
    for (kind, value) in attributes(&ifaddrmsg[8..]) {
        // The two differ on point-to-point links, where IFA_ADDRESS is the other end.
        if let (IFA_ADDRESS | IFA_LOCAL, Some(address)) = (kind, ipv4(value)) {
            networks.push(Network::around(address, 32));
            if prefix >= WIDEST_NEIGHBOURHOOD {
                networks.push(Network::around(address, prefix));
            }
        }
    }
}

fn connected_route(rtmsg: &[u8]) -> Option<Network> {
    let (prefix, scope, kind) = (rtmsg[1], rtmsg[6], rtmsg[7]);
    if kind != RTN_UNICAST || scope != RT_SCOPE_LINK || prefix < WIDEST_NEIGHBOURHOOD {
        return None;
    }
    let (_, destination) = attributes(&rtmsg[12..]).find(|&(kind, _)| kind == RTA_DST)?;
    Some(Network::around(ipv4(destination)?, prefix))
}

fn dump(socket: &OwnedFd, kind: u16, body: &[u8], mut each: impl FnMut(u16, &[u8])) -> std::io::Result<()> {
    rustix::net::send(socket, &message(kind, NLM_F_REQUEST | NLM_F_DUMP, body), SendFlags::empty())?;
    // The kernel fills at most 32 KiB at a time.
    let mut buffer = vec![0_u8; 64 * 1024];
    loop {
        let (length, _) = rustix::net::recv(socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while rest.len() >= HEADER {
            let size = usize::try_from(u32_at(rest, 0)).unwrap_or(usize::MAX);
            if size < HEADER || size > rest.len() {
                return Err(Errno::PROTO.into());
            }
            match u16_at(rest, 4) {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR if size >= HEADER + 4 => {
                    return Err(Errno::from_raw_os_error(i32_at(rest, HEADER).saturating_neg()).into());
                }
                kind => each(kind, &rest[HEADER..size]),
            }
            rest = &rest[aligned(size).min(rest.len())..];
        }
    }
}

fn loopback_up() -> Request {
    let mut ifinfomsg = Vec::with_capacity(16);
    ifinfomsg.extend([0_u8; 4]);
    ifinfomsg.extend(LOOPBACK_INDEX.to_ne_bytes());
    ifinfomsg.extend(IFF_UP.to_ne_bytes());
    ifinfomsg.extend(IFF_UP.to_ne_bytes());
    Request {
        message: message(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, &ifinfomsg),
        purpose: "bringing the loopback up",
        family_may_be_missing: false,
    }
}

fn rule_request(rule: &Rule, priority: u32) -> Request {
    let action = match rule.verdict {
        Verdict::Pass => FR_ACT_TO_TBL,
        Verdict::Refuse => FR_ACT_UNREACHABLE,
    };
    let mut body = fib_rule(AF_INET, rule.to.prefix, action);
    if rule.to.prefix > 0 {
        attribute(&mut body, FRA_DST, &rule.to.address.octets());
    }
    attribute(&mut body, FRA_PRIORITY, &priority.to_ne_bytes());
    let (protocol, port) = match rule.transport {
        Transport::Any => (None, None),
        Transport::Tcp => (Some(IPPROTO_TCP), None),
        Transport::Udp => (Some(IPPROTO_UDP), None),
        Transport::TcpPort(port) => (Some(IPPROTO_TCP), Some(port)),
        Transport::UdpPort(port) => (Some(IPPROTO_UDP), Some(port)),
    };
    if let Some(protocol) = protocol {
        attribute(&mut body, FRA_IP_PROTO, &[protocol]);
    }
    if let Some(port) = port {
        let bounds = [port.to_ne_bytes(), port.to_ne_bytes()].concat();
        attribute(&mut body, FRA_DPORT_RANGE, &bounds);
    }
    Request {
        message: message(RTM_NEWRULE, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE, &body),
        purpose: "making a routing rule",
        family_may_be_missing: false,
    }
}

fn refuse_ipv6() -> Request {
    let mut body = fib_rule(AF_INET6, 0, FR_ACT_UNREACHABLE);
    attribute(&mut body, FRA_PRIORITY, &100_u32.to_ne_bytes());
    Request {
        message: message(RTM_NEWRULE, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE, &body),
        purpose: "refusing IPv6",
        family_may_be_missing: true,
    }
}

fn fib_rule(family: u8, prefix: u8, action: u8) -> Vec<u8> {
    let table = if action == FR_ACT_TO_TBL { RT_TABLE_MAIN } else { 0 };
    // family, dst_len, src_len, tos, table, two reserved, action, flags
    let mut body = vec![family, prefix, 0, 0, table, 0, 0, action];
    body.extend(0_u32.to_ne_bytes());
    body
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).expect("a request is some dozen bytes");
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0_u8; 8]); // sequence and port: one exchange at a time on a socket of its own
    message.extend(body);
    message
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("a value is some bytes");
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(aligned(body.len()), 0);
}

fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        if rest.len() < 4 {
            return None;
        }
        let length = usize::from(u16_at(rest, 0));
        if length < 4 || length > rest.len() {
            return None;
        }
        let item = (u16_at(rest, 2), &rest[4..length]);
        rest = &rest[aligned(length).min(rest.len())..];
        Some(item)
    })
}

fn ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_give_themselves_and_their_network() {
        // 192.0.2.2/24 as the kernel reports it, with a label in between.
        let mut body = vec![AF_INET, 24, 0x80, 0, 4, 0, 0, 0];
        attribute(&mut body, IFA_ADDRESS, &[192, 0, 2, 2]);
        attribute(&mut body, 3, b"eth0\0");
        attribute(&mut body, IFA_LOCAL, &[192, 0, 2, 2]);
        let mut networks = Vec::new();
        address_networks(&body, &mut networks);
        let once: [Network; 2] = ["192.0.2.2/32".parse().unwrap(), "192.0.2.0/24".parse().unwrap()];
        assert_eq!(networks, [once, once].concat());
    }

    #[test]
    fn only_connected_routes_of_a_neighbourhood_count() {
        let route = |prefix, scope, kind, destination: [u8; 4]| {
            let mut body = vec![AF_INET, prefix, 0, 0, RT_TABLE_MAIN, 0, scope, kind, 0, 0, 0, 0];
            attribute(&mut body, RTA_DST, &destination);
            connected_route(&body)
        };
        let vpn = route(24, RT_SCOPE_LINK, RTN_UNICAST, [203, 0, 113, 0]);
        assert_eq!(vpn, Some("203.0.113.0/24".parse().unwrap()));
        assert_eq!(route(1, RT_SCOPE_LINK, RTN_UNICAST, [128, 0, 0, 0]), None, "a VPN to everywhere");
        assert_eq!(route(24, 0, RTN_UNICAST, [203, 0, 113, 0]), None, "behind a gateway");
        assert_eq!(route(32, RT_SCOPE_LINK, 3, [203, 0, 113, 255]), None, "a broadcast address");
    }

    #[test]
    fn this_host_can_be_read() {
        let networks = host_networks().unwrap();
        assert!(networks.iter().all(|network| !network.address.is_loopback()));
    }
}
