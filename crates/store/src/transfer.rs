//! Computers that go from one workspace of a tenant to another.

use roost_api::{ComputerId, Timestamp, WorkspaceId};

use crate::computers::load;
use crate::places::{By, WorkspaceRecord, default_project, find_workspace};
use crate::query::QueryBuilder;
use crate::quotas::admit_arrived;
use crate::{Store, StoreError};

/// How [`Store::transfer`] went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    Done,
    /// It is not in the workspace; none was brought anywhere.
    NotThere(ComputerId),
    NoTarget,
}

impl Store {
    /// Brings computers with their snapshots to the default project of another workspace, where its policy has room for
    /// them: all of them, or none.
    pub async fn transfer(
        &self,
        source: &WorkspaceRecord,
        target: WorkspaceId,
        computers: &[ComputerId],
    ) -> Result<Transfer, StoreError> {
        let mut tx = self.write().await?;
        if find_workspace(&mut tx, source.tenant, By::Id, &target.to_string()).await?.is_none() {
            return Ok(Transfer::NoTarget);
        }
        let mut arrived = Vec::with_capacity(computers.len());
        for id in computers {
            match load(&mut tx, *id).await? {
                Some(record) if record.tenant_id == source.tenant && record.workspace_id == source.id => {
                    arrived.push(record);
                }
                _ => return Ok(Transfer::NotThere(*id)),
            }
        }
        if target == source.id {
            return Ok(Transfer::Done);
        }
        let project = default_project(&mut tx, source.tenant, target).await?;
        let now = Timestamp::now().as_micros();
        for (statement, of) in [
            ("UPDATE computers SET workspace_id = ", " WHERE id"),
            ("UPDATE snapshots SET workspace_id = ", " WHERE computer_id"),
        ] {
            let mut query = QueryBuilder::new(statement);
            query.push_bind(target.to_string()).push(", project_id = ").push_bind(project.to_string());
            query.push(", updated_at = ").push_bind(now).push(of).push_in(computers);
            query.build().execute(&mut *tx).await?;
        }
        admit_arrived(&mut tx, target, &arrived).await?;
        tx.commit().await?;
        Ok(Transfer::Done)
    }
}
