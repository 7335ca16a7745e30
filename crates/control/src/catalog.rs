//! What computers can be made of, and where there is room for them.

use std::sync::Arc;

use roost_api::{
    ComputeCatalog, ComputePricing, ComputeTemplate, ErrorCode, Product, Region, RegionName, Size, SizeOffer,
    TemplateCatalog, TemplateOffer, TemplateReadiness, TemplateState,
};
use roost_launch::Capacity;

use crate::workflow::{DISK_OF_START, WARM_MEMORY};
use crate::{Control, Failure, TemplateError, Templates};

/// The one template there is.
pub(crate) const DESKTOP: &str = "miosa-desktop";
const DESCRIPTION: &str = "A Linux desktop: Debian with XFCE, seen and driven through the API";
const COMPUTER: &str = "computer";

impl Control {
    /// Every region, and how much room it has.
    pub async fn regions(&self) -> Result<Vec<Region>, Failure> {
        let mut regions = Vec::new();
        for (name, launcher) in self.inner.regions.iter() {
            regions.push(region_view(name.clone(), &launcher.capacity().await?));
        }
        // The one that computers are made in unless somebody says otherwise is the first.
        regions.sort_by_key(|region| region.slug != RegionName::local());
        Ok(regions)
    }

    pub async fn region(&self, name: &str) -> Result<Region, Failure> {
        let mut regions = self.regions().await?.into_iter();
        let found = regions.find(|region| region.slug.as_str() == name);
        found.ok_or_else(|| Failure::new(ErrorCode::NotFound, "region not found"))
    }

    pub fn size_offers(&self) -> Vec<SizeOffer> {
        let prices = self.inner.config.credits.prices;
        let offer = |size: Size| SizeOffer {
            slug: size,
            name: capital(size.as_str()),
            vcpus: size.vcpus(),
            memory_mb: size.memory().0,
            disk_gb: size.disk_gib(),
            price_hour: prices.of(size),
        };
        Size::ALL.map(offer).into()
    }

    pub fn compute_pricing(&self) -> ComputePricing {
        let prices = self.inner.config.credits.prices;
        ComputePricing {
            unit: "credits".to_owned(),
            credits_per_hour: Size::ALL.map(|size| (size.as_str().to_owned(), prices.of(size))).into(),
        }
    }

    pub fn compute_catalog(&self) -> ComputeCatalog {
        ComputeCatalog {
            products: vec![product()],
            sizes: self.size_offers(),
            generated_at: self.inner.store.now(),
        }
    }

    pub async fn template_catalog(&self) -> Result<TemplateCatalog, Failure> {
        let templates = self.inner.templates.clone();
        // A memory that is new is read as a whole.
        let sizes = tokio::task::spawn_blocking(move || readiness(&templates)).await;
        let sizes = sizes.map_err(Failure::internal)??;
        let best = TemplateState::ALL.into_iter().find(|state| sizes.iter().any(|size| size.state == *state));
        let template = TemplateOffer {
            id: DESKTOP.to_owned(),
            name: DESKTOP.to_owned(),
            product: COMPUTER.to_owned(),
            primitive: COMPUTER.to_owned(),
            description: DESCRIPTION.to_owned(),
            default_size: Size::Small,
            sdk_name: DESKTOP.to_owned(),
            cli_name: DESKTOP.to_owned(),
            aliases: Vec::new(),
            installed_tools: Vec::new(),
            sizes,
            readiness: best.unwrap_or(TemplateState::Missing),
        };
        Ok(TemplateCatalog {
            templates: vec![template],
            products: vec![product()],
            sizes: self.size_offers(),
            shape_contracts: Default::default(),
            readiness_states: TemplateState::ALL.into(),
            rules: Default::default(),
        })
    }

    pub fn compute_template(&self, id: &str) -> Result<ComputeTemplate, Failure> {
        if id != DESKTOP {
            return Err(Failure::new(ErrorCode::NotFound, "template not found"));
        }
        Ok(ComputeTemplate {
            id: DESKTOP.to_owned(),
            name: DESKTOP.to_owned(),
            slug: DESKTOP.to_owned(),
            description: DESCRIPTION.to_owned(),
            created_at: self.inner.templates.created(DESKTOP)?,
        })
    }

    pub fn compute_templates(&self) -> Result<Vec<ComputeTemplate>, Failure> {
        Ok(vec![self.compute_template(DESKTOP)?])
    }
}

/// How a computer of each size would start now.
fn readiness(templates: &Arc<dyn Templates>) -> Result<Vec<TemplateReadiness>, TemplateError> {
    let current = templates.current(DESKTOP)?;
    let state_of = |size| {
        let Some(files) = &current else { return Ok(TemplateState::Missing) };
        let warm = templates.warm(DESKTOP, &files.digest, size)?;
        Ok(if warm.is_some() { TemplateState::FastReady } else { TemplateState::ColdBootOnly })
    };
    let rows = Size::ALL.into_iter().map(|size| {
        let state = state_of(size)?;
        Ok(TemplateReadiness {
            size,
            state,
            fast_ready: state == TemplateState::FastReady,
            cold_boot_only: state == TemplateState::ColdBootOnly,
            ready_nodes: u32::from(state == TemplateState::FastReady),
            checked_nodes: 1,
        })
    });
    rows.collect()
}

fn product() -> Product {
    Product {
        id: COMPUTER.to_owned(),
        name: "Computer".to_owned(),
        default_template: DESKTOP.to_owned(),
        default_size: Size::Small,
        size_ids: Size::ALL.into(),
        templates: vec![DESKTOP.to_owned()],
    }
}

fn region_view(name: RegionName, capacity: &Capacity) -> Region {
    // A small computer starts like every other: from a template, on a disk that is empty.
    let slots = (capacity.memory / WARM_MEMORY).min(capacity.disk / DISK_OF_START);
    let headroom = capacity.memory.saturating_mul(100) / capacity.memory_total.max(1);
    Region {
        id: name.clone(),
        name: name.to_string(),
        label: name.to_string(),
        slug: name,
        country: None,
        city: None,
        available: slots > 0,
        status: if slots > 0 { "available" } else { "full" }.to_owned(),
        active_nodes: 1,
        small_slots_free: u32::try_from(slots).unwrap_or(u32::MAX),
        headroom: u8::try_from(headroom.min(100)).unwrap_or(100),
    }
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
