//! Domains of a tenant, a workspace or a project, under which the ports of its computers are reached.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Timestamp;

/// The domain under which the ports of computers are reached: `{port}-{slug}.sandbox.{domain}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PreviewDomain {
    /// Null: none of its own; the one that is next above counts.
    pub domain: Option<String>,
    /// Where `*.sandbox.{domain}` is to lead, as a CNAME or with the same addresses.
    pub cname_target: String,
    /// When it was seen to lead there. Until then it counts for nothing.
    pub verified_at: Option<Timestamp>,
    /// Why it was not verified just now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Body of `PUT …/preview-domain`: one of these.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct SetPreviewDomain {
    pub domain: Option<String>,
    /// The same.
    pub preview_domain: Option<String>,
    /// The same.
    pub hostname: Option<String>,
}

/// The longest domain of computers: a label and `.sandbox.` before it are a name of DNS yet.
const LONGEST_DOMAIN: usize = 253 - 63 - ".sandbox.".len();

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a domain such as `preview.example.org`: at most 181 letters, digits and hyphens in two or more parts, without a \
     scheme, a port, a path or `*`; a name in other letters is given in its `xn--` form"
)]
pub struct NotADomain;

/// A domain as it is kept: in small letters, without the dot at its end.
pub fn domain_name(text: &str) -> Result<String, NotADomain> {
    let name = text.trim().to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    // A name whose last part is a number is an address.
    let ends_in_a_word =
        name.rsplit_once('.').is_some_and(|(_, last)| last.bytes().any(|byte| byte.is_ascii_alphabetic()));
    let is_domain = name.len() <= LONGEST_DOMAIN && name.split('.').all(is_label) && ends_in_a_word;
    if is_domain { Ok(name.to_owned()) } else { Err(NotADomain) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_a_host_name() {
        let longest = format!("{}.{}.{}.org", "a".repeat(63), "b".repeat(63), "c".repeat(49));
        assert_eq!(longest.len(), LONGEST_DOMAIN);
        for (text, name) in [
            ("example.org", "example.org"),
            (" Preview.Example.ORG. ", "preview.example.org"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("3com.co.uk", "3com.co.uk"),
            (&longest, &longest),
        ] {
            assert_eq!(domain_name(text).as_deref(), Ok(name));
        }
        let too_long = format!("d{longest}");
        for text in [
            "",
            ".",
            "example",
            "localhost",
            "example..org",
            ".example.org",
            "-a.example.org",
            "a-.example.org",
            "*.example.org",
            "a_b.example.org",
            "bücher.example",
            "https://example.org",
            "example.org/a",
            "example.org:443",
            "127.0.0.1",
            "[::1]",
            "a b.example.org",
            "a.example.org\0",
            &too_long,
        ] {
            assert_eq!(domain_name(text), Err(NotADomain), "{text:?}");
        }
    }
}
