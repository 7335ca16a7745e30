//! When an idle computer stops by itself.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ApiError;
use crate::computer::present;

/// Answer of `GET` and `PATCH /computers/{id}/auto-stop`: these two keys and no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AutoStop {
    /// Idle seconds before it stops; 0 is never.
    pub auto_stop_seconds: u32,
    pub enabled: bool,
}

impl AutoStop {
    pub fn after(seconds: u32) -> Self {
        Self { auto_stop_seconds: seconds, enabled: seconds > 0 }
    }
}

/// Body of `PATCH /computers/{id}/auto-stop`.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct ChangeAutoStop {
    /// Idle seconds before it stops; 0 or null is never.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<u32>)]
    pub auto_stop_seconds: Option<Option<u32>>,
    /// What some clients call it; stands behind `auto_stop_seconds`.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<u32>)]
    pub seconds: Option<Option<u32>>,
}

impl ChangeAutoStop {
    /// The seconds that are asked for.
    pub fn wanted(self) -> Result<u32, ApiError> {
        let wanted = self.auto_stop_seconds.or(self.seconds);
        let wanted = wanted.ok_or_else(|| {
            ApiError::field("auto_stop_seconds", "missing: idle seconds before it stops, or null for never")
        })?;
        Ok(wanted.unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clients_word_is_read() {
        for (body, wanted) in [
            (r#"{"auto_stop_seconds": 60}"#, Some(60)),
            (r#"{"auto_stop_seconds": null}"#, Some(0)),
            (r#"{"auto_stop_seconds": 0, "seconds": 5}"#, Some(0)),
            (r#"{"auto_stop_seconds": null, "seconds": 5}"#, Some(0)),
            (r#"{"seconds": 600}"#, Some(600)),
            (r#"{"seconds": null}"#, Some(0)),
            ("{}", None),
        ] {
            let change: ChangeAutoStop = serde_json::from_str(body).unwrap();
            assert_eq!(change.wanted().ok(), wanted, "{body}");
        }
        for body in [r#"{"seconds": -1}"#, r#"{"seconds": 1.5}"#, r#"{"auto_stop_seconds": "60"}"#] {
            assert!(serde_json::from_str::<ChangeAutoStop>(body).is_err(), "{body}");
        }
    }
}
