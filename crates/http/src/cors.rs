//! Which web pages of others may call the API from a browser.

use std::str::FromStr;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, Uri, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

/// What a page may read of an answer beside its body.
const EXPOSED: [HeaderName; 4] = [
    HeaderName::from_static("x-request-id"),
    header::RETRY_AFTER,
    HeaderName::from_static("x-miosa-wait-outcome"),
    HeaderName::from_static("idempotency-replayed"),
];
/// How long a browser need not ask again. Chromium does not remember for longer.
const REMEMBERED: Duration = Duration::from_secs(7200);

/// A scheme, a host and perhaps a port, as browsers send it; or every one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Every,
    One(HeaderValue),
}

#[derive(Debug, thiserror::Error)]
#[error("not an origin such as https://app.example.org, without a path; or * for every one")]
pub struct NotAnOrigin;

impl FromStr for Origin {
    type Err = NotAnOrigin;

    fn from_str(text: &str) -> Result<Self, NotAnOrigin> {
        if text == "*" {
            return Ok(Self::Every);
        }
        let uri: Uri = text.parse().map_err(|_| NotAnOrigin)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(NotAnOrigin);
        };
        // A browser sends no more than this, in lower case.
        let origin = format!("{scheme}://{authority}").to_ascii_lowercase();
        if origin != text.to_ascii_lowercase() || authority.as_str().contains('@') {
            return Err(NotAnOrigin);
        }
        Ok(Self::One(HeaderValue::try_from(origin).map_err(|_| NotAnOrigin)?))
    }
}

/// `None`: no page but the server's own.
pub(crate) fn layer(origins: &[Origin]) -> Option<CorsLayer> {
    let one = |origin: &Origin| match origin {
        Origin::One(origin) => Some(origin.clone()),
        Origin::Every => None,
    };
    let allowed = match origins.iter().map(one).collect::<Option<Vec<_>>>() {
        Some(origins) if origins.is_empty() => return None,
        Some(origins) => AllowOrigin::list(origins),
        None => AllowOrigin::from(Any),
    };
    // Clients send more X-MIOSA headers than anybody has a list of, and a header gives no right by itself: there
    // are no cookies.
    Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(EXPOSED)
            .max_age(REMEMBERED),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        assert_eq!("*".parse::<Origin>().unwrap(), Origin::Every);
        for text in ["https://app.example.org", "http://localhost:3000", "HTTPS://App.Example.org"] {
            let one = Origin::One(HeaderValue::try_from(text.to_ascii_lowercase()).unwrap());
            assert_eq!(text.parse::<Origin>().unwrap(), one);
        }
        for text in
            ["", "example.org", "https://", "https://example.org/", "https://a@b", "https://a/b", "a b"]
        {
            assert!(text.parse::<Origin>().is_err(), "{text:?}");
        }
    }
}
