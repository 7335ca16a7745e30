//! Regions: pools of computers with a data directory each, and who runs the machines there.

use std::collections::BTreeMap;
use std::sync::Arc;

use roost_api::{ApiError, ComputerId, ErrorCode, RegionName};
use roost_launch::Launcher;

use crate::{Control, Failure};

/// Every region of this server. The first one is [`RegionName::local`], which every server has.
#[derive(Debug, Clone)]
pub struct Regions {
    local: Arc<dyn Launcher>,
    /// All of them.
    launchers: BTreeMap<RegionName, Arc<dyn Launcher>>,
}

impl<L: Launcher> From<Arc<L>> for Regions {
    fn from(local: Arc<L>) -> Self {
        let local: Arc<dyn Launcher> = local;
        let launchers = [(RegionName::local(), local.clone())].into();
        Self { local, launchers }
    }
}

impl Regions {
    #[must_use]
    pub fn with<L: Launcher>(mut self, name: RegionName, launcher: Arc<L>) -> Self {
        if name != RegionName::local() {
            self.launchers.insert(name, launcher);
        }
        self
    }

    /// Where what belongs to no computer is done.
    pub(crate) fn local(&self) -> &Arc<dyn Launcher> {
        &self.local
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&RegionName, &Arc<dyn Launcher>)> {
        self.launchers.iter()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<dyn Launcher>> {
        self.launchers.values()
    }

    /// Who runs the machines of a region. A region may be taken out of the configuration while computers are in it.
    pub(crate) fn of(&self, region: &RegionName) -> Result<&Arc<dyn Launcher>, Failure> {
        self.launchers.get(region).ok_or_else(|| {
            let message = format!(
                "this server has no region {region}: start it with --region {region}=DIRECTORY, the directory that it \
                 had before"
            );
            Failure::new(ErrorCode::NoReadyMachine, message)
        })
    }
}

impl Control {
    /// Who runs the machine of a computer, where it is now.
    pub(crate) async fn launcher_of(&self, computer: ComputerId) -> Result<Arc<dyn Launcher>, Failure> {
        let record = self.record(computer).await?;
        Ok(self.inner.regions.of(&record.region)?.clone())
    }

    /// The region that a request names; `local` where it names none.
    pub(crate) fn wanted_region(&self, name: Option<&str>) -> Result<RegionName, ApiError> {
        let Some(name) = name.map(str::trim).filter(|name| !name.is_empty()) else {
            return Ok(RegionName::local());
        };
        let region = name.parse::<RegionName>().ok();
        region.filter(|region| self.inner.regions.launchers.contains_key(region)).ok_or_else(|| {
            let problem = format!("there is no region {name:?}: GET /regions has those there are");
            ApiError::field("region", problem)
        })
    }
}
