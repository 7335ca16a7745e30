//! Typed ids: one id cannot be passed where another kind is meant.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

macro_rules! typed_id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        #[schema(value_type = Uuid)]
        pub struct $name(Uuid);

        impl $name {
            /// A new random id (UUID version 4, like the ids of the public API).
            #[expect(clippy::new_without_default, reason = "a fresh id is not a default value")]
            pub fn new() -> Self {
                Self(Uuid::new_v4())
            }

            pub fn as_uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::try_parse(text).map(Self)
            }
        }
    };
}

typed_id!(
    /// A computer.
    ComputerId
);
typed_id!(
    /// An organization: the boundary of authorization and billing.
    TenantId
);
typed_id!(UserId);
typed_id!(WorkspaceId);
typed_id!(ProjectId);
typed_id!(ApiKeyId);
typed_id!(
    /// Something that happened to an API key.
    KeyEventId
);
typed_id!(ShareId);
typed_id!(
    /// A state of a computer that is kept: its disk, and its memory where it ran.
    SnapshotId
);
typed_id!(
    /// A part of a disk that never changes any more; disks of computers and other layers lie on it.
    LayerId
);
typed_id!(
    /// One run of a durable workflow.
    WorkflowId
);
typed_id!(WebhookId);
typed_id!(
    /// One event on its way to one webhook.
    DeliveryId
);
typed_id!(
    /// A time for which a computer ran without a break.
    RunId
);
typed_id!(
    /// An entry in a tenant's ledger.
    TransactionId
);
typed_id!(
    /// One run of the server program, among those on one database.
    ServerId
);
