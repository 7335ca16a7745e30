//! What a person sees at a port where there is nothing else to see.

use axum::http::header;
use axum::response::{Html, IntoResponse, Response};
use roost_api::{ApiError, ErrorCode};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Page {
    Notice,
    /// Asks for the viewer password, and goes to `next` with it.
    Password {
        next: String,
    },
}

const STYLE: &str = "
:root { color-scheme: light dark; font: 16px/1.55 system-ui, sans-serif;
  --ground: light-dark(#f6f5f2, #0d0f13); --surface: light-dark(#fff, #171a21); --line: light-dark(#dcd8cf, #2d323d);
  --text: light-dark(#1c1f26, #e7eaf0); --muted: light-dark(#5c6472, #a0a8b7); --accent: #f2b84b; --bad: light-dark(#b3261e, #f4827f) }
* { box-sizing: border-box } body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1.5rem;
  background: var(--ground); color: var(--text) }
main { width: 100%; max-width: 30rem; padding: 2rem; background: var(--surface); border: 1px solid var(--line); border-radius: 14px }
h1 { margin: 0 0 .5rem; font-size: 1.3rem; line-height: 1.3 } p { margin: 0 0 1rem; color: var(--muted); overflow-wrap: anywhere }
form { display: flex; gap: .5rem; margin: 0 0 1rem } input, button { font: inherit; padding: .5rem .8rem; border-radius: 8px }
input { flex: 1; min-width: 0; color: inherit; background: var(--ground); border: 1px solid var(--line) }
button, a.button { background: var(--accent); color: #1d1606; border: 0; font-weight: 600; cursor: pointer; text-decoration: none }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
.bad { color: var(--bad) } small { color: var(--muted); opacity: .8 }";

impl Page {
    pub(crate) fn render(&self, error: &ApiError, request_id: &str) -> Response {
        let title = title(self, error.code);
        let body = match self {
            Page::Notice => format!("<p>{}</p>", escape(&error.message)),
            Page::Password { next } => {
                let problem = match error.code {
                    ErrorCode::WrongPassword | ErrorCode::RateLimited => {
                        format!("<p class=bad role=alert>{}</p>", escape(&error.message))
                    }
                    _ => String::new(),
                };
                format!(
                    "<p>Whoever shared it with you has the viewer password of this computer.</p>{problem}\
                     <form method=post action=/.roost/session>\
                     <input type=hidden name=next value=\"{}\">\
                     <input type=password name=password required autofocus autocomplete=current-password \
                     aria-label=\"Viewer password\" placeholder=\"Viewer password\"><button>Open</button></form>",
                    escape(next)
                )
            }
        };
        let html = format!(
            "<!doctype html><html lang=en><meta charset=utf-8>\
             <meta name=viewport content=\"width=device-width, initial-scale=1\">\
             <title>{title}</title><style>{STYLE}</style>\
             <main><h1>{title}</h1>{body}<small>Roost &middot; {}</small></main></html>",
            escape(request_id)
        );
        let headers = [
            (header::CACHE_CONTROL, "no-store"),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (
                header::CONTENT_SECURITY_POLICY,
                "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'",
            ),
        ];
        (headers, Html(html)).into_response()
    }
}

fn title(page: &Page, code: ErrorCode) -> &'static str {
    match (page, code) {
        (Page::Password { .. }, _) => "This page is protected",
        (Page::Notice, ErrorCode::NotFound) => "There is nothing here",
        (Page::Notice, ErrorCode::InvalidToken) => "You need a way in",
        (Page::Notice, ErrorCode::ComputerNotRunning) => "This computer is not running",
        (Page::Notice, ErrorCode::ComputerStarting) => "This computer is starting",
        (Page::Notice, ErrorCode::PortUnavailable) => "Nothing answers yet",
        (Page::Notice, ErrorCode::AgentUnavailable) => "This computer does not answer",
        (Page::Notice, _) => "That did not work",
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn what_a_visitor_wrote_is_text() {
        let page = Page::Password { next: "/\"><script>alert('1')</script>&".to_owned() };
        let error = ApiError::new(ErrorCode::WrongPassword, "<b>wrong</b>");
        let body = page.render(&error, "req_1").into_body().collect().await.unwrap().to_bytes();
        let html = String::from_utf8(body.to_vec()).unwrap();
        assert!(!html.contains("<script") && !html.contains("<b>"), "{html}");
        assert!(
            html.contains("value=\"/&quot;&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;\""),
            "{html}"
        );
    }
}
