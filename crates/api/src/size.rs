//! Sizes of computers and units of memory.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Memory in MiB (1,048,576 bytes), the unit of the wire's `memory_mb`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct MemoryMib(pub u32);

/// What a computer may be ordered as. The numbers of `small`, `medium` and `large` are the seed page's;
/// `xs` and `xl` continue them (clients name these two).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    Xs,
    Small,
    Medium,
    Large,
    #[serde(alias = "xlarge")]
    Xl,
}

impl Size {
    pub const ALL: [Size; 5] = [Size::Xs, Size::Small, Size::Medium, Size::Large, Size::Xl];

    pub fn vcpus(self) -> u32 {
        match self {
            Size::Xs | Size::Small => 1,
            Size::Medium => 2,
            Size::Large => 4,
            Size::Xl => 8,
        }
    }

    pub fn memory(self) -> MemoryMib {
        MemoryMib(match self {
            Size::Xs => 2048,
            Size::Small => 4096,
            Size::Medium => 8192,
            Size::Large => 16384,
            Size::Xl => 32768,
        })
    }

    /// The virtual size of a new disk. It takes room only as it fills.
    pub fn disk_gib(self) -> u32 {
        match self {
            Size::Xs | Size::Small => 10,
            Size::Medium => 20,
            Size::Large => 40,
            Size::Xl => 80,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Size::Xs => "xs",
            Size::Small => "small",
            Size::Medium => "medium",
            Size::Large => "large",
            Size::Xl => "xl",
        }
    }
}

impl std::str::FromStr for Size {
    type Err = UnknownSize;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "xs" => Ok(Size::Xs),
            "small" => Ok(Size::Small),
            "medium" => Ok(Size::Medium),
            "large" => Ok(Size::Large),
            "xl" | "xlarge" => Ok(Size::Xl),
            _ => Err(UnknownSize(text.to_owned())),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("unknown size {0:?}: use xs, small, medium, large or xl")]
pub struct UnknownSize(String);
