//! Where a request comes from: the peer of the connection or, behind a proxy that the operator trusts, whom that names.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, Request};
use axum::http::{Extensions, HeaderMap};
use roost_api::AddressRange;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// Noted once, before anything else is done with a request.
#[derive(Debug, Clone, Copy)]
struct Client(IpAddr);

pub(crate) fn note(request: &mut Request, trusted: &[AddressRange]) {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_canonical());
    if let Some(client) = peer.and_then(|peer| client(peer, request.headers(), trusted)) {
        request.extensions_mut().insert(Client(client));
    }
}

/// `None`: it is not known.
pub(crate) fn address(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<Client>().map(|client| client.0)
}

/// Each proxy adds at the end from whom it has a request. So the last one that is no trusted proxy is the client, and
/// what stands before it is its own claim.
fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[AddressRange]) -> Option<IpAddr> {
    let is_trusted = |address: IpAddr| trusted.iter().any(|range| range.contains(address));
    let mut nearest = peer;
    let named: Vec<&str> = headers
        .get_all(FORWARDED_FOR)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or("?").split(','))
        .collect();
    for text in named.into_iter().rev() {
        if !is_trusted(nearest) {
            break;
        }
        nearest = parse(text)?;
    }
    Some(nearest)
}

/// Some proxies add the port.
fn parse(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let address = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_are_believed() {
        let table: [(&str, &[&str], Option<&str>); 11] = [
            // Nobody but a proxy names others.
            ("198.51.100.1", &["203.0.113.7"], Some("198.51.100.1")),
            ("10.0.0.1", &[], Some("10.0.0.1")),
            ("10.0.0.1", &["203.0.113.7"], Some("203.0.113.7")),
            ("::ffff:10.0.0.1", &["203.0.113.7"], Some("203.0.113.7")),
            // What a client writes itself stands before what the proxy adds.
            ("10.0.0.1", &["1.2.3.4, 203.0.113.7"], Some("203.0.113.7")),
            ("10.0.0.1", &["1.2.3.4", "203.0.113.7"], Some("203.0.113.7")),
            // Through two proxies.
            ("10.0.0.1", &["1.2.3.4, 203.0.113.7, 10.0.0.2"], Some("203.0.113.7")),
            ("10.0.0.1", &["[2001:db8::1]:4711"], Some("2001:db8::1")),
            ("10.0.0.1", &["203.0.113.7:80"], Some("203.0.113.7")),
            // Nobody knows.
            ("10.0.0.1", &["unknown"], None),
            ("10.0.0.1", &["203.0.113.7, "], None),
        ];
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        for (peer, named, expected) in table {
            let mut headers = HeaderMap::new();
            for value in named {
                headers.append(FORWARDED_FOR, value.parse().unwrap());
            }
            let peer: IpAddr = peer.parse().unwrap();
            let found = client(peer.to_canonical(), &headers, &trusted);
            assert_eq!(found, expected.map(|text| text.parse().unwrap()), "{peer} {named:?}");
        }
    }
}
