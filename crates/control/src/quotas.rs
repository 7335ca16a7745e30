//! Quotas of end users, and what a tenant has altogether.

use roost_api::{
    ApiError, BillingUsage, ErrorCode, MicroCredits, Plan, Quota, QuotaUsage, SetQuota, Status, UsageQuery,
};
use roost_store::{Caller, ComputerFilter, Limit, LimitOf, LimitReached, QuotaChange, Reach, SnapshotFilter};
use serde_json::json;

use crate::access::{self, Act};
use crate::places::external_id;
use crate::{Control, Failure};

impl Control {
    pub async fn quota(&self, caller: &Caller, external_user: &str) -> Result<Quota, Failure> {
        let user = user(external_user)?;
        access::check_quota(caller, &user, Act::Read)?;
        let (quota, used) = self.inner.store.quota_use(caller.tenant, &user).await?;
        Ok(Quota {
            external_user_id: user,
            max_sandboxes: quota.computers,
            max_concurrent: quota.running,
            max_storage_gb: quota.storage_gib,
            max_credit_cents: quota.cost.and_then(|cost| u32::try_from(cost.floor()).ok()),
            current_sandboxes: used.computers,
            usage: QuotaUsage {
                sandboxes: used.computers,
                concurrent: used.running,
                storage_gb: used.storage_gib,
                credit_cents: used.cost.floor(),
                period_start: self.inner.store.now().start_of_month(),
            },
        })
    }

    pub async fn set_quota(
        &self,
        caller: &Caller,
        external_user: &str,
        request: SetQuota,
    ) -> Result<Quota, Failure> {
        let user = user(external_user)?;
        access::check_quota(caller, &user, Act::Write)?;
        let change = QuotaChange {
            computers: request.max_sandboxes,
            running: request.max_concurrent,
            storage_gib: request.max_storage_gb,
            cost: request.max_credit_cents.map(|most| most.map(MicroCredits::from_credits)),
        };
        self.inner.store.set_quota(caller.tenant, &user, &change).await?;
        // What may be spent may be spent already.
        self.inner.hub.wake();
        self.quota(caller, &user).await
    }

    pub async fn remove_quota(&self, caller: &Caller, external_user: &str) -> Result<String, Failure> {
        let user = user(external_user)?;
        access::check_quota(caller, &user, Act::Write)?;
        self.inner.store.remove_quota(caller.tenant, &user).await?;
        Ok(user)
    }

    pub async fn plan(&self, caller: &Caller) -> Result<Plan, Failure> {
        access::sees_accounts(caller)?;
        let store = &self.inner.store;
        let reach = Reach::whole(caller.tenant);
        let running = ComputerFilter { statuses: Some(vec![Status::Running]), ..ComputerFilter::default() };
        let balance = self.credit_balance(caller).await?;
        Ok(Plan {
            plan: crate::tenants::PLAN.to_owned(),
            computers: store.count_computers(&reach, &ComputerFilter::default()).await?,
            running: store.count_computers(&reach, &running).await?,
            snapshots: store.snapshots(Some(&reach), &SnapshotFilter::default()).await?.len() as u64,
            workspaces: store.workspaces(caller.tenant, None).await?.len() as u64,
            users: store.users(caller.tenant).await?.len() as u64,
            unlimited: balance.unlimited,
            balance_credits: balance.balance_credits,
        })
    }

    pub async fn billing_usage(&self, caller: &Caller) -> Result<BillingUsage, Failure> {
        let balance = self.credit_balance(caller).await?;
        Ok(BillingUsage {
            summary: self.usage_summary(caller, UsageQuery::default()).await?,
            balance_credits: balance.balance_credits,
            unlimited: balance.unlimited,
        })
    }
}

fn user(text: &str) -> Result<String, ApiError> {
    let field = "external_user_id";
    external_id(field, Some(text.to_owned()))?.ok_or_else(|| ApiError::field(field, "is empty"))
}

/// What whoever asked for more than there may be is told.
pub(crate) fn reached(reached: &LimitReached) -> ApiError {
    let (whose, field, id, rule) = match &reached.of {
        LimitOf::EndUser(user) => {
            (format!("the end user {user:?}"), "external_user_id", user.clone(), "quota")
        }
        LimitOf::Workspace(id) => ("the workspace".to_owned(), "workspace_id", id.to_string(), "policy"),
    };
    let (code, limit, most, message) = match &reached.limit {
        Limit::Computers(most) => {
            let name = if rule == "quota" { "max_sandboxes" } else { "max_computers" };
            let message = format!("{whose} has {most} computers, which is its {rule}; delete one first");
            (ErrorCode::QuotaExceeded, name, json!(most), message)
        }
        Limit::Running(most) => {
            let message = format!("{most} computers of {whose} run, which is its {rule}; stop one first");
            (ErrorCode::QuotaExceeded, "max_concurrent", json!(most), message)
        }
        Limit::StorageGib(most) => {
            let message = format!(
                "the disks of {whose} could grow beyond the {most} GiB of its {rule}; delete a computer, or ask for \
                 a smaller one"
            );
            (ErrorCode::QuotaExceeded, "max_storage_gb", json!(most), message)
        }
        Limit::Cost(most) => {
            let most = most.floor();
            let message = format!(
                "INSUFFICIENT_CREDITS: {whose} has spent the {most} credits that its {rule} has for a month"
            );
            (ErrorCode::InsufficientCredits, "max_credit_cents", json!(most), message)
        }
        Limit::Size(size) => {
            let message = format!("the policy of {whose} has no computers of the size {}", size.as_str());
            (ErrorCode::PolicyDenied, "allowed_sizes", json!(size), message)
        }
        Limit::Region(region) => {
            let message = format!("the policy of {whose} has no computers in the region {region}");
            (ErrorCode::PolicyDenied, "allowed_regions", json!(region), message)
        }
    };
    ApiError::new(code, message).with_details(json!({ field: id, "limit": limit, "value": most }))
}
