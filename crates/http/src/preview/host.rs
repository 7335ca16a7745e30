//! Which computer, if any, a request's host name means.
//!
//! ```text
//! {slug}.computer.{domain}                                     its desktop, and the whole API
//! {port}-{slug}.sandbox.{domain}, {port}-{slug}.computer.{domain}   a port
//! {slug}.sandbox.{domain}                                      the port it is known for
//! ```
//!
//! A label whose first part is a number names a port: no slug begins with one. Ports are under domains of tenants,
//! workspaces and projects, too; their desktops are not.

use axum::http::{HeaderMap, Uri, header, uri::Authority};
use roost_api::{ApiError, ErrorCode, PortNumber};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    /// The server itself, under any name.
    Server,
    Desktop {
        slug: String,
    },
    /// Without a port: the one the computer is known for.
    Preview {
        slug: String,
        port: Option<PortNumber>,
    },
    /// Below the domains of computers, and no name that one can have.
    Nobody,
}

/// The host a request was sent to. HTTP/2 has it in the address, HTTP/1 in a header; a request that gives two is
/// refused, because whoever stands before us may have looked at the other one.
pub(crate) fn name(uri: &Uri, headers: &HeaderMap) -> Result<String, ApiError> {
    let ambiguous =
        |what: &str| ApiError::new(ErrorCode::AmbiguousRequest, format!("the request names {what}"));
    let mut values = headers.get_all(header::HOST).iter();
    let header = match (values.next(), values.next()) {
        (None, _) => None,
        (Some(value), None) => Some(value.to_str().map_err(|_| ambiguous("a host that is no text"))?),
        (Some(_), Some(_)) => return Err(ambiguous("more than one host")),
    };
    match (uri.authority().map(Authority::as_str), header) {
        (Some(address), Some(header)) if !address.eq_ignore_ascii_case(header) => {
            Err(ambiguous("two different hosts"))
        }
        (Some(name), _) | (None, Some(name)) => Ok(name.to_owned()),
        (None, None) => Ok(String::new()),
    }
}

/// What `name`, with or without a port, means below `domain`, which may have a port too.
pub(crate) fn parse(name: &str, domain: &str) -> Host {
    let name = without_port(name).trim_end_matches('.').to_ascii_lowercase();
    let domain = without_port(domain).trim_end_matches('.').to_ascii_lowercase();
    let Some(rest) = name.strip_suffix(&domain).and_then(|rest| rest.strip_suffix('.')) else {
        return Host::Server;
    };
    let (label, is_sandbox) = if let Some(label) = rest.strip_suffix(".sandbox") {
        (label, true)
    } else if let Some(label) = rest.strip_suffix(".computer") {
        (label, false)
    } else {
        return Host::Server;
    };
    read(label, is_sandbox)
}

/// The port that `name` means, and the domain that it is under, where that may be somebody's. At most one domain is
/// meant: what is left of it are two labels.
pub(crate) fn elsewhere(name: &str) -> Option<(Host, String)> {
    let name = without_port(name).trim_end_matches('.').to_ascii_lowercase();
    let (label, rest) = name.split_once('.')?;
    let (kind, domain) = rest.split_once('.')?;
    let host = match kind {
        "sandbox" => read(label, true),
        "computer" => read(label, false),
        _ => return None,
    };
    match host {
        Host::Preview { .. } | Host::Nobody => Some((host, domain.to_owned())),
        Host::Desktop { .. } | Host::Server => None,
    }
}

/// What is meant by the label before `.sandbox` or `.computer`.
fn read(label: &str, is_sandbox: bool) -> Host {
    let is_label = !label.is_empty()
        && label.len() <= 63
        && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !is_label {
        return Host::Nobody;
    }
    match label.split_once('-') {
        Some((number, slug)) if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => {
            match number.parse() {
                Ok(port) if !slug.is_empty() => Host::Preview { slug: slug.to_owned(), port: Some(port) },
                _ => Host::Nobody,
            }
        }
        _ if is_sandbox => Host::Preview { slug: label.to_owned(), port: None },
        _ => Host::Desktop { slug: label.to_owned() },
    }
}

fn without_port(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn preview(slug: &str, port: Option<u16>) -> Host {
        Host::Preview { slug: slug.to_owned(), port: port.map(|port| PortNumber::new(port).unwrap()) }
    }

    #[test]
    fn every_form_is_read() {
        let desktop = |slug: &str| Host::Desktop { slug: slug.to_owned() };
        let cases = [
            ("3000-box.sandbox.example.org", preview("box", Some(3000))),
            ("3000-box.computer.example.org:8080", preview("box", Some(3000))),
            ("BOX.Sandbox.Example.ORG.", preview("box", None)),
            ("65535-my-box-2.sandbox.example.org", preview("my-box-2", Some(65535))),
            ("3d-printer.sandbox.example.org", preview("3d-printer", None)),
            ("my-box.computer.example.org:443", desktop("my-box")),
            ("example.org", Host::Server),
            ("api.example.org", Host::Server),
            ("sandbox.example.org", Host::Server),
            ("127.0.0.1:8080", Host::Server),
            ("[::1]:8080", Host::Server),
            ("", Host::Server),
            ("box.sandbox.example.com", Host::Server),
            ("box.sandbox.evilexample.org", Host::Server),
            ("0-box.sandbox.example.org", Host::Nobody),
            ("03000-box.sandbox.example.org", Host::Nobody),
            ("65536-box.sandbox.example.org", Host::Nobody),
            ("3000-.sandbox.example.org", Host::Nobody),
            ("a.b.sandbox.example.org", Host::Nobody),
            ("b_x.sandbox.example.org", Host::Nobody),
            (".sandbox.example.org", Host::Nobody),
            ("box.sandbox.example.org:80:90", Host::Server),
        ];
        for (name, expected) in cases {
            assert_eq!(parse(name, "example.org:8080"), expected, "{name}");
        }
    }

    #[test]
    fn a_name_is_under_one_domain() {
        let under = |host: Host, domain: &str| Some((host, domain.to_owned()));
        let cases = [
            ("3000-box.sandbox.shop.example", under(preview("box", Some(3000)), "shop.example")),
            ("3000-Box.Computer.Shop.example.:80", under(preview("box", Some(3000)), "shop.example")),
            ("box.sandbox.sandbox.example", under(preview("box", None), "sandbox.example")),
            ("0-box.sandbox.shop.example", under(Host::Nobody, "shop.example")),
            (".sandbox.shop.example", under(Host::Nobody, "shop.example")),
            ("box.computer.shop.example", None),
            ("a.box.sandbox.shop.example", None),
            ("sandbox.shop.example", None),
            ("box.sandbox", None),
            ("127.0.0.1", None),
            ("", None),
        ];
        for (name, expected) in cases {
            assert_eq!(elsewhere(name), expected, "{name}");
        }
    }

    #[test]
    fn a_request_has_one_host() {
        let headers = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::HOST, value.parse().unwrap());
            }
            headers
        };
        let origin = Uri::from_static("/a");
        let absolute = Uri::from_static("http://box.sandbox.localhost/a");
        assert_eq!(name(&origin, &headers(&["a"])).unwrap(), "a");
        assert_eq!(name(&origin, &headers(&[])).unwrap(), "");
        assert_eq!(name(&absolute, &headers(&[])).unwrap(), "box.sandbox.localhost");
        assert_eq!(name(&absolute, &headers(&["Box.sandbox.localhost"])).unwrap(), "box.sandbox.localhost");
        for (uri, values) in [(&origin, &["a", "b"][..]), (&origin, &["a", "a"]), (&absolute, &["a"])] {
            assert_eq!(name(uri, &headers(values)).unwrap_err().code, ErrorCode::AmbiguousRequest);
        }
    }

    proptest! {
        /// Whatever the label: at most one computer is meant, and it is the one whose name is written there.
        #[test]
        fn no_label_reaches_another_computer(label in "[a-zA-Z0-9.:_%-]{0,70}") {
            match parse(&format!("{label}.sandbox.example.org"), "example.org") {
                Host::Preview { slug, port: Some(port) } => {
                    prop_assert_eq!(format!("{port}-{slug}"), label.to_ascii_lowercase());
                }
                Host::Preview { slug, port: None } => prop_assert_eq!(slug, label.to_ascii_lowercase()),
                Host::Nobody => {}
                other @ (Host::Server | Host::Desktop { .. }) => prop_assert!(false, "{other:?}"),
            }
        }

        #[test]
        fn any_text_is_read_without_harm(name in "\\PC{0,100}", domain in "[a-z.:0-9]{0,30}") {
            parse(&name, &domain);
            elsewhere(&name);
        }

        #[test]
        fn every_slug_and_port_comes_back(slug in "[a-z][a-z0-9]{0,10}(-[a-z0-9]{1,5}){0,3}", port in 1u16..) {
            prop_assert_eq!(
                parse(&format!("{port}-{slug}.sandbox.localhost:1"), "localhost:1"),
                preview(&slug, Some(port))
            );
            prop_assert_eq!(parse(&format!("{slug}.sandbox.localhost"), "localhost:1"), preview(&slug, None));
        }
    }
}
