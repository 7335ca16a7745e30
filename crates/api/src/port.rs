//! Exposed ports: web programs inside a computer that others may reach.

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ComputerId, Timestamp, Visibility};

/// A TCP port of a computer: 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = u16, minimum = 1)]
pub struct PortNumber(NonZeroU16);

#[derive(Debug, Clone, thiserror::Error)]
#[error("must be a whole number from 1 to 65535")]
pub struct NotAPort;

impl PortNumber {
    pub fn new(number: u16) -> Result<Self, NotAPort> {
        NonZeroU16::new(number).map(Self).ok_or(NotAPort)
    }

    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl std::fmt::Display for PortNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One spelling per number: no sign, no leading zero.
impl std::str::FromStr for PortNumber {
    type Err = NotAPort;

    fn from_str(text: &str) -> Result<Self, NotAPort> {
        if !text.bytes().all(|byte| byte.is_ascii_digit()) || text.starts_with('0') {
            return Err(NotAPort);
        }
        Self::new(text.parse().map_err(|_| NotAPort)?)
    }
}

/// Who may use an exposed port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PortVisibility {
    /// Anyone.
    Public,
    /// Members of the computer's tenant.
    Private,
    /// Members, and whoever has a preview token or the viewer password.
    Protected,
}

impl PortVisibility {
    pub const ALL: [Self; 3] = [Self::Public, Self::Private, Self::Protected];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Protected => "protected",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|visibility| visibility.as_str() == text)
    }
}

/// What a new port gets where nothing is said.
impl From<Visibility> for PortVisibility {
    fn from(computer: Visibility) -> Self {
        match computer {
            Visibility::Public => Self::Public,
            Visibility::Tenant => Self::Private,
            Visibility::Key => Self::Protected,
        }
    }
}

/// An exposed port.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Port {
    pub port: PortNumber,
    pub visibility: PortVisibility,
    /// `http`: the proxy speaks HTTP and WebSocket. Other protocols go through a tunnel.
    pub protocol: String,
    pub url: String,
    /// The same as `url`.
    pub public_url: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Answer of `GET /computers/{id}/ports`, lowest first.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PortList {
    pub ports: Vec<Port>,
    /// The same rows again, where other clients look for them.
    pub data: Vec<Port>,
}

/// Body of `POST /computers/{id}/ports`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct ExposePort {
    pub port: PortNumber,
    /// Absent: as the computer's own `visibility` says (`tenant` is `private`); an exposed port keeps what it has.
    pub visibility: Option<PortVisibility>,
}

/// Body of `PATCH /computers/{id}/ports/{port}`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct ChangePort {
    /// Absent: as it is.
    pub visibility: Option<PortVisibility>,
}

/// Answer of `DELETE /computers/{id}/ports/{port}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PortDeleted {
    pub port: PortNumber,
    pub deleted: bool,
}

/// Answer of `GET /computers/{id}/ports/{port}/url`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PortUrl {
    pub port: PortNumber,
    pub url: String,
    /// The same below the server's own address, for tools that cannot resolve the host name.
    pub path_url: String,
    pub slug: String,
}

/// Body of `POST /computers/{id}/ports/{port}/access`; may be absent.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct PortAccessRequest {
    /// 60 to 86400 (3600).
    pub ttl_seconds: Option<i64>,
}

/// Ways into a port. An extension of the public API.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PortAccess {
    pub computer_id: ComputerId,
    pub port: PortNumber,
    pub url: String,
    /// Opens the port in your own browser, whatever its visibility. It works once, within a minute; the session
    /// it begins ends at `expires_at`.
    pub session_url: String,
    /// A preview token, to pass on: `Authorization: Bearer` lets whoever has it use the port while it is
    /// `protected`.
    pub token: String,
    /// The same as a link for browsers; it may be used again and again.
    pub preview_url: String,
    /// Unix seconds.
    pub expires_at: i64,
    pub ttl_seconds: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_one_spelling() {
        assert_eq!("3000".parse::<PortNumber>().unwrap().get(), 3000);
        assert_eq!("65535".parse::<PortNumber>().unwrap().get(), 65535);
        for text in ["", "0", "00", "080", "+80", "-1", "65536", "99999999999", "8o", " 80", "８０"] {
            assert!(text.parse::<PortNumber>().is_err(), "{text:?}");
        }
        assert!(serde_json::from_str::<PortNumber>("0").is_err());
        assert!(serde_json::from_str::<PortNumber>("70000").is_err());
    }
}
