//! Addresses and credentials of the desktop stream.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{ComputerId, ShareId, Status, Timestamp};

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ComputerUrls {
    pub desktop_url: String,
    pub stream_url: String,
    /// The desktop page without a host name of its own, for tools that cannot resolve one.
    pub desktop_path_url: String,
    /// WebSocket; opens with a stream token in the query `auth`.
    pub terminal_url: String,
    /// The terminal page.
    pub terminal_page_url: String,
    /// The same without a host name of its own.
    pub terminal_path_url: String,
    pub computer_id: ComputerId,
    pub urls: Vec<NamedUrl>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NamedUrl {
    pub name: String,
    pub url: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VncCredentials {
    pub desktop_url: String,
    pub ws_url: String,
    pub token: String,
    /// Unix seconds.
    pub expires_at: i64,
    pub computer_id: ComputerId,
    pub slug: String,
}

/// Body of `POST /computers/{id}/stream-token`; may be absent.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct StreamTokenRequest {
    /// 60 to 86400 (3600).
    pub ttl_seconds: Option<i64>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StreamToken {
    pub token: String,
    /// Unix seconds.
    pub expires_at: i64,
    pub ttl_seconds: i64,
    pub computer_id: ComputerId,
    pub slug: String,
}

/// What the desktop page asks for before it connects, with the stream token as its credential.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DesktopSession {
    pub computer_id: ComputerId,
    pub name: String,
    pub slug: String,
    pub status: Status,
    pub ws_path: String,
    /// The server drops every input.
    pub view_only: bool,
    /// Unix seconds.
    pub expires_at: i64,
}

/// Query of `GET /computers/{id}/embed`.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EmbedQuery {
    /// 60 to 86400 (3600).
    pub ttl_seconds: Option<i64>,
    /// The same as `ttl_seconds`, which wins.
    pub ttl: Option<i64>,
    /// Watch without being able to do anything: the server drops every input.
    pub view_only: Option<bool>,
    /// Given back as it is (`desktop`); the page has one mode.
    pub mode: Option<String>,
}

/// A desktop for an iframe or a person without an account.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Embed {
    pub computer_id: ComputerId,
    pub slug: String,
    pub mode: String,
    pub view_only: bool,
    /// A stream token with the rights that `view_only` says.
    pub token: String,
    /// Unix seconds.
    pub expires_at: i64,
    pub ttl_seconds: i64,
    /// The page with its token.
    pub url: String,
    /// The same as `url`.
    pub embed_url: String,
    /// The same as `url`.
    pub desktop_entry_url: String,
    /// The page without a token.
    pub desktop_url: String,
    pub ws_url: String,
}

/// Answer of `GET /computers/{id}/viewer-password`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ViewerPasswordState {
    pub computer_id: ComputerId,
    pub viewer_password_set: bool,
    pub viewer_password_set_at: Option<Timestamp>,
    /// The same as `viewer_password_set`.
    pub password_set: bool,
    /// The same as `viewer_password_set_at`.
    pub password_set_at: Option<Timestamp>,
}

/// A new viewer password. It is shown only here.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct ViewerPassword {
    pub computer_id: ComputerId,
    pub viewer_password: String,
    /// The same as `viewer_password`.
    pub password: String,
    pub viewer_password_set_at: Timestamp,
    /// The same as `viewer_password_set_at`.
    pub rotated_at: Timestamp,
}

impl std::fmt::Debug for ViewerPassword {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ViewerPassword(of {}, secret)", self.computer_id)
    }
}

/// Body of `POST /computers/{id}/viewer-session`.
#[derive(Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct ViewerSessionRequest {
    /// Required.
    pub password: Option<String>,
    /// 60 to 86400 (3600).
    pub ttl_seconds: Option<i64>,
}

impl std::fmt::Debug for ViewerSessionRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ViewerSessionRequest(secret)")
    }
}

/// Whom a share is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShareKind {
    /// Whoever has the link.
    #[default]
    Link,
    /// A person, named by `email`, to whom the link is to be given.
    User,
}

/// What a share lets its holder do with the desktop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShareRole {
    /// Watch it.
    #[default]
    Viewer,
    /// Watch it and drive it.
    Editor,
}

macro_rules! texts {
    ($name:ident { $($variant:ident = $text:literal),+ }) => {
        impl $name {
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text),+
                }
            }

            pub fn parse(text: &str) -> Option<Self> {
                [$(Self::$variant),+].into_iter().find(|value| value.as_str() == text)
            }
        }
    };
}
texts!(ShareKind { Link = "link", User = "user" });
texts!(ShareRole { Viewer = "viewer", Editor = "editor" });

/// Body of `POST /computers/{id}/shares`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct CreateShare {
    /// `link` where it is absent.
    pub kind: ShareKind,
    /// `viewer` where it is absent.
    pub role: ShareRole,
    /// Required of kind `user`.
    pub email: Option<String>,
    /// 1 to 8760; absent: until it is revoked.
    pub expires_in_hours: Option<i64>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Share {
    pub id: ShareId,
    pub kind: ShareKind,
    pub role: ShareRole,
    pub email: Option<String>,
    /// Null: until it is revoked.
    pub expires_at: Option<Timestamp>,
}

/// A new share. Its address is shown only here.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedShare {
    pub data: Share,
    /// Opens the desktop in a browser.
    pub share_url: String,
}

/// Answer of `DELETE /computers/{id}/shares/{share_id}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ShareRevoked {
    pub id: ShareId,
    pub deleted: bool,
}

/// What a share opens: the answer of `GET /shared/{token}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SharedDesktop {
    pub name: String,
    pub status: Status,
    pub kind: ShareKind,
    pub role: ShareRole,
    #[serde(flatten)]
    pub desktop: Embed,
}
