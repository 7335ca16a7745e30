//! Policies of workspaces, and computers that go from one workspace to another.

use roost_api::{ApiError, ComputerId, TransferComputers, TransferredComputers, WorkspacePolicy};
use roost_store::{Caller, Transfer, WorkspaceRecord};

use crate::access::Denied;
use crate::{Control, Failure};

const MOST_TRANSFERRED: usize = 100;

impl Control {
    pub async fn policy(&self, record: &WorkspaceRecord) -> Result<WorkspacePolicy, Failure> {
        Ok(self.inner.store.policy(record.id).await?)
    }

    /// Replaces the policy of a workspace. What there is stays, and nothing that it does not have is made or started.
    pub async fn set_policy(
        &self,
        record: &WorkspaceRecord,
        policy: WorkspacePolicy,
    ) -> Result<WorkspacePolicy, Failure> {
        for region in policy.allowed_regions.iter().flatten() {
            self.wanted_region(Some(region.as_str()))
                .map_err(|error| ApiError::field("allowed_regions", error.message))?;
        }
        match self.inner.store.set_policy(record.id, &policy).await? {
            true => Ok(policy),
            false => Err(Denied::NotFound.about("workspace")),
        }
    }

    /// Brings computers with their snapshots to another workspace of the tenant: all of them, or none.
    pub async fn transfer(
        &self,
        caller: &Caller,
        source: &WorkspaceRecord,
        request: TransferComputers,
    ) -> Result<TransferredComputers, Failure> {
        let required = |field: &str| ApiError::field(field, "is required");
        let ids =
            request.resource_ids.filter(|ids| !ids.is_empty()).ok_or_else(|| required("resource_ids"))?;
        if ids.len() > MOST_TRANSFERRED {
            return Err(
                ApiError::field("resource_ids", format!("more than {MOST_TRANSFERRED} at once")).into()
            );
        }
        let mut ids: Vec<ComputerId> = ids.into_iter().map(ComputerId::from).collect();
        ids.sort();
        ids.dedup();
        let target = request.target_workspace_id.ok_or_else(|| required("target_workspace_id"))?;
        let target = self.usable_workspace(caller, &target).await?;
        match self.inner.store.transfer(source, target.id, &ids).await? {
            Transfer::Done => {}
            Transfer::NotThere(id) => {
                let problem = format!("the workspace has no computer {id}; nothing was transferred");
                return Err(ApiError::field("resource_ids", problem).into());
            }
            Transfer::NoTarget => return Err(Denied::NotFound.about("workspace")),
        }
        // Whoever follows one of them may not be let into its workspace any more.
        self.inner.callers.changed();
        for id in &ids {
            self.inner.hub.notify(*id);
        }
        Ok(TransferredComputers {
            transferred: ids,
            source_workspace_id: source.id,
            target_workspace_id: target.id,
        })
    }
}
