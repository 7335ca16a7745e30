//! What computers can be made of, and where: regions, sizes, prices, templates.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Size, Timestamp};

/// Lower-case letters, digits and hyphens.
const LONGEST_NAME: usize = 40;

/// The name of a region: a pool of computers with a data directory of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct RegionName(String);

impl RegionName {
    /// The region that every server has.
    pub fn local() -> Self {
        Self("local".to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for RegionName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is no name of a region: 1 to {LONGEST_NAME} lower-case letters, digits and hyphens, no hyphen at an end"
)]
pub struct NotARegion(String);

impl std::str::FromStr for RegionName {
    type Err = NotARegion;

    fn from_str(text: &str) -> Result<Self, NotARegion> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_name = (1..=LONGEST_NAME).contains(&text.len())
            && text.bytes().all(fits)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if is_name { Ok(Self(text.to_owned())) } else { Err(NotARegion(text.to_owned())) }
    }
}

impl TryFrom<String> for RegionName {
    type Error = NotARegion;

    fn try_from(text: String) -> Result<Self, NotARegion> {
        text.parse()
    }
}

impl From<RegionName> for String {
    fn from(name: RegionName) -> Self {
        name.0
    }
}

/// A region, and how much room it has now.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Region {
    /// The same as `slug`.
    pub id: RegionName,
    pub name: String,
    pub slug: RegionName,
    pub label: String,
    pub country: Option<String>,
    pub city: Option<String>,
    /// Whether a computer can be started there now.
    pub available: bool,
    /// `available`, or `full`.
    pub status: String,
    pub active_nodes: u32,
    /// How many small computers could be started there now.
    pub small_slots_free: u32,
    /// The part of the host's memory that is free, in percent.
    pub headroom: u8,
}

/// A size, and what an hour of it costs.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SizeOffer {
    pub slug: Size,
    pub name: String,
    pub vcpus: u32,
    /// MiB.
    pub memory_mb: u32,
    /// The virtual size of a new disk, in GiB.
    pub disk_gb: u32,
    /// Credits.
    pub price_hour: u32,
}

/// What an hour of each size costs.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ComputePricing {
    /// `credits`.
    pub unit: String,
    pub credits_per_hour: BTreeMap<String, u32>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ComputeCatalog {
    pub products: Vec<Product>,
    pub sizes: Vec<SizeOffer>,
    pub generated_at: Timestamp,
}

/// A kind of thing that templates are for.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Product {
    pub id: String,
    pub name: String,
    pub default_template: String,
    pub default_size: Size,
    pub size_ids: Vec<Size>,
    pub templates: Vec<String>,
}

/// How a computer of a template and size would start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateState {
    /// It continues from memory.
    FastReady,
    /// It boots.
    ColdBootOnly,
    /// The template is not built.
    Missing,
}

impl TemplateState {
    pub const ALL: [TemplateState; 3] =
        [TemplateState::FastReady, TemplateState::ColdBootOnly, TemplateState::Missing];
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TemplateReadiness {
    pub size: Size,
    pub state: TemplateState,
    pub fast_ready: bool,
    pub cold_boot_only: bool,
    pub ready_nodes: u32,
    pub checked_nodes: u32,
}

/// A template as the catalogue of templates shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TemplateOffer {
    pub id: String,
    pub name: String,
    /// `computer`.
    pub product: String,
    /// `computer`.
    pub primitive: String,
    pub description: String,
    pub default_size: Size,
    pub sdk_name: String,
    pub cli_name: String,
    pub aliases: Vec<String>,
    pub installed_tools: Vec<String>,
    pub sizes: Vec<TemplateReadiness>,
    /// The best of all sizes.
    pub readiness: TemplateState,
}

/// Answer of `GET /templates`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TemplateCatalog {
    pub templates: Vec<TemplateOffer>,
    pub products: Vec<Product>,
    pub sizes: Vec<SizeOffer>,
    /// Empty: there are shapes of computers only, which `sizes` has.
    pub shape_contracts: BTreeMap<String, Vec<String>>,
    pub readiness_states: Vec<TemplateState>,
    pub rules: BTreeMap<String, String>,
}

/// A template in the compute catalogue.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ComputeTemplate {
    pub id: String,
    pub name: String,
    pub slug: String,
    pub description: String,
    /// Null where the template is not built on this host.
    pub created_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_regions() {
        for text in ["local", "us-east-ny", "eu1", "a"] {
            assert_eq!(text.parse::<RegionName>().unwrap().as_str(), text);
        }
        for text in ["", "-a", "a-", "US", "a_b", "a/b", "..", "a b", "ä", &"x".repeat(41)] {
            assert!(text.parse::<RegionName>().is_err(), "{text:?}");
        }
    }
}
