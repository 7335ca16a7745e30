//! Snapshots, clones and what is made from them; and resize, which drops the memory that clones are made of.

use std::collections::BTreeMap;

use futures_util::Stream;
use roost_api::{
    AccountSnapshot, ApiError, BlockedSnapshot, CloneComputer, ComputerId, CreateSnapshot, DeleteSnapshots,
    DeletedSnapshots, ErrorCode, ForkSnapshot, LayerId, ListSnapshots, NameSnapshot, NamedSnapshot,
    ResizeComputer, Size, Snapshot, SnapshotDependent, SnapshotEvent, SnapshotGroup, SnapshotId,
    SnapshotResource, SnapshotState, Status, Timestamp,
};
use roost_store::{
    Begin, BegunCapture, Caller, ComputerRecord, Deletion, Dependent, FromSnapshot, Naming, NewCapture,
    NewComputer, NewSnapshot, Reach, SnapshotFilter, SnapshotPurpose, SnapshotRecord, SnapshotStatus,
    WorkflowKind, WorkflowPayload,
};
use serde_json::json;

use crate::access::{self, Act};
use crate::computers::{check_filter, check_name, customer, filter_id, metadata};
use crate::guest::not_running;
use crate::slug::slugify;
use crate::status::status;
use crate::workflow::{Handle, Start};
use crate::{Control, Failure};

const LONGEST_COMMENT: usize = 500;
const LONGEST_SNAPSHOT_NAME: usize = 63;
/// Ten years, in seconds.
const LONGEST_RETENTION: u64 = 10 * 366 * 86_400;
const SECONDS_PER_DAY: u64 = 86_400;

/// A computer that was just made from a snapshot, and what to wait for until it runs.
#[derive(Debug)]
pub struct Restored {
    pub record: ComputerRecord,
    pub snapshot: SnapshotRecord,
    handle: Handle,
}

impl Restored {
    /// Waits until the computer runs or its creation failed.
    pub async fn ended(self) {
        // How it ended is in the computer's status.
        drop(self.handle.ended().await);
    }
}

/// Why a computer cannot be captured now.
enum Refusal {
    /// Work of a moment is done on it: to be waited for.
    Moment,
    Status(Status),
}

impl Control {
    /// Makes a computer that continues where this one is. The source stands still for a moment.
    pub async fn clone_computer(
        &self,
        caller: &Caller,
        id: ComputerId,
        mut request: CloneComputer,
    ) -> Result<crate::Created, Failure> {
        let CloneComputer { external_workspace_id, external_user_id, external_project_id, .. } = &mut request;
        customer(caller, [external_workspace_id, external_user_id, external_project_id])?;
        let name = given_name(request.name.as_deref())?;
        let metadata = request.metadata.clone().map(|map| metadata(Some(map))).transpose()?;
        self.require_credits(caller.tenant).await?;
        let clone_id = ComputerId::new();
        let source = self.record(id).await?;
        check_clone(&source, &request)?;
        self.admit(&source.region, Start::Booted).await?;
        let set = request.env.clone().unwrap_or_default();
        let env = self.variables_of(caller.tenant, id, clone_id, &set).await?;
        let setup = self.setup_of(caller.tenant, id, clone_id).await?;
        let begun = self
            .capture(id, &[Status::Running], |source| {
                let name = name.clone().unwrap_or_else(|| format!("{}-clone", source.name));
                let snapshot = new_snapshot(SnapshotPurpose::Clone);
                let clone = NewComputer {
                    id: clone_id,
                    tenant_id: source.tenant_id,
                    owner_user_id: caller.user,
                    workspace_id: source.workspace_id,
                    project_id: source.project_id,
                    slug: slugify(&name),
                    name,
                    template_type: source.template_type.clone(),
                    template_digest: source.template_digest.clone(),
                    size: source.size,
                    external_workspace_id: or_else(
                        &request.external_workspace_id,
                        &source.external_workspace_id,
                    ),
                    external_user_id: or_else(&request.external_user_id, &source.external_user_id),
                    external_project_id: or_else(&request.external_project_id, &source.external_project_id),
                    selected_apps: source.selected_apps.clone(),
                    metadata: metadata.clone().unwrap_or_else(|| source.metadata.clone()),
                    visibility: request.visibility.unwrap_or(source.visibility),
                    auto_stop: match request.always_on {
                        Some(true) => 0,
                        Some(false) | None => request.idle_timeout_sec.unwrap_or(source.auto_stop),
                    },
                    timeout: request.timeout_sec.unwrap_or(source.timeout),
                    screen: source.screen,
                    always_on: request.always_on.unwrap_or(false),
                    disk_gib: source.disk_gib,
                    region: source.region.clone(),
                    snapshot: Some(snapshot.id),
                    layer: None,
                    last_snapshot: source.last_snapshot,
                    env: env.clone(),
                    setup: setup.clone(),
                };
                NewCapture { snapshot, clone: Some(clone) }
            })
            .await?
            .map_err(not_running)?;
        let begun = *begun;
        drop(self.run_workflow(begun.workflow));
        let (record, workflow) = begun.clone.ok_or_else(|| {
            Failure::internal(std::io::Error::other("a clone was begun without its computer"))
        })?;
        tracing::info!(computer = %record.id, slug = record.slug, source = %id, "cloned");
        self.inner.hub.notify(record.id);
        let handle = self.run_workflow(workflow);
        Ok(crate::Created { record, handle })
    }

    /// Begins to take a snapshot of a computer that runs or is stopped.
    pub async fn take_snapshot(
        &self,
        id: ComputerId,
        request: CreateSnapshot,
    ) -> Result<SnapshotRecord, Failure> {
        let comment = request.comment.or(request.description).or(request.name);
        if comment.as_ref().is_some_and(|comment| comment.chars().count() > LONGEST_COMMENT) {
            let problem = format!("longer than {LONGEST_COMMENT} characters");
            return Err(ApiError::field("comment", problem).into());
        }
        let days = request.expiration_days.map(|days| days.saturating_mul(SECONDS_PER_DAY));
        let retention = request.retention_seconds.or(request.expiration_seconds).or(days);
        if retention.is_some_and(|seconds| seconds == 0 || seconds > LONGEST_RETENTION) {
            return Err(ApiError::field("retention_seconds", "not between 1 second and 10 years").into());
        }
        let keep = request.keep.unwrap_or(false);
        let expires_at = retention.filter(|_| !keep).and_then(|seconds| {
            let micros = i64::try_from(seconds).ok()?.checked_mul(1_000_000)?;
            Timestamp::from_micros(Timestamp::now().as_micros().checked_add(micros)?)
        });
        // One that failed has a disk too, and somebody may want what is on it.
        let allowed = [Status::Running, Status::Stopped, Status::Error];
        let begun = self
            .capture(id, &allowed, |_| {
                let mut snapshot = new_snapshot(SnapshotPurpose::Snapshot);
                snapshot.comment = comment.clone();
                snapshot.keep = keep;
                snapshot.expires_at = expires_at;
                snapshot.retention_seconds = retention;
                NewCapture { snapshot, clone: None }
            })
            .await?
            .map_err(|now| {
                let message = "a snapshot needs a computer that is running, stopped or failed";
                let details = json!({ "status": now.as_str() });
                ApiError::new(ErrorCode::InvalidState, message).with_details(details)
            })?;
        let begun = *begun;
        drop(self.run_workflow(begun.workflow));
        Ok(begun.snapshot)
    }

    /// Begins a capture, after the ones that are at work. The inner error is the status that forbids it.
    async fn capture(
        &self,
        id: ComputerId,
        allowed: &[Status],
        plan: impl Fn(&ComputerRecord) -> NewCapture,
    ) -> Result<Result<Box<BegunCapture>, Status>, Failure> {
        loop {
            let begun = self.inner.store.begin_capture(id, |record| {
                if record.intended.is_some_and(WorkflowKind::is_brief) {
                    return Err(Refusal::Moment);
                }
                let now = status(record);
                let free = record.intended.is_none() && allowed.contains(&now) && record.provisioned;
                if free { Ok(plan(record)) } else { Err(Refusal::Status(now)) }
            });
            match begun.await? {
                Begin::Begun(begun) => return Ok(Ok(begun)),
                Begin::Missing => return Err(Failure::computer_not_found()),
                Begin::Refused(Refusal::Moment) => self.moment(id).await?,
                Begin::Refused(Refusal::Status(now)) => return Ok(Err(now)),
            }
        }
    }

    /// Gives a stopped computer another size. Its saved memory is dropped, so its next start boots.
    pub async fn resize(&self, id: ComputerId, request: ResizeComputer) -> Result<ComputerRecord, Failure> {
        let size = wanted_size(&request)?;
        loop {
            let guard = |record: &ComputerRecord| {
                if record.intended.is_some_and(WorkflowKind::is_brief) {
                    return Err(Refusal::Moment);
                }
                let now = status(record);
                let stopped = record.intended.is_none() && now == Status::Stopped;
                if stopped { Ok(()) } else { Err(Refusal::Status(now)) }
            };
            let payload = Some(WorkflowPayload::Resize { size });
            let begun = self.inner.store.begin_workflow(id, WorkflowKind::Resize, payload, guard);
            match begun.await? {
                Begin::Begun(workflow) => {
                    let ended = self.run_workflow(workflow).ended().await;
                    ended.map_err(|error| Failure::new(ErrorCode::Internal, error.message))?;
                    return self.record(id).await;
                }
                Begin::Missing => return Err(Failure::computer_not_found()),
                Begin::Refused(Refusal::Moment) => self.moment(id).await?,
                Begin::Refused(Refusal::Status(now)) => return Err(must_be_stopped(now, "resize")),
            }
        }
    }

    /// The snapshot if the caller may do that with it. Another tenant's, hidden and deleted ones are not there.
    pub async fn snapshot(
        &self,
        caller: &Caller,
        id: SnapshotId,
        act: Act,
    ) -> Result<SnapshotRecord, Failure> {
        let found = self.inner.store.snapshot(id).await?.filter(|found| {
            found.purpose == SnapshotPurpose::Snapshot && found.status != SnapshotStatus::Deleted
        });
        let found = found.ok_or_else(Failure::snapshot_not_found)?;
        access::check(caller, &found, act).map_err(|denied| denied.about("snapshot"))?;
        Ok(found)
    }

    /// The snapshots of a computer, newest first.
    pub async fn computer_snapshots(&self, record: &ComputerRecord) -> Result<Vec<SnapshotRecord>, Failure> {
        let filter = SnapshotFilter { computer: Some(record.id), ..SnapshotFilter::default() };
        Ok(self.inner.store.snapshots(Some(&Reach::whole(record.tenant_id)), &filter).await?)
    }

    /// 409 for a computer that is not stopped; called before the body of a request is looked at.
    pub fn require_stopped(&self, record: &ComputerRecord, verb: &str) -> Result<(), Failure> {
        match status(record) {
            Status::Stopped => Ok(()),
            now => Err(must_be_stopped(now, verb)),
        }
    }

    /// 409 for a snapshot that nothing can be made from; called before the body of a request is looked at.
    pub fn require_ready(&self, snapshot: &SnapshotRecord) -> Result<(), Failure> {
        match snapshot.status {
            SnapshotStatus::Ready => Ok(()),
            other @ (SnapshotStatus::Creating | SnapshotStatus::Failed | SnapshotStatus::Deleted) => {
                Err(not_ready(other))
            }
        }
    }

    /// Makes a new computer that continues from a snapshot.
    pub async fn restore(
        &self,
        caller: &Caller,
        snapshot: &SnapshotRecord,
        request: ForkSnapshot,
    ) -> Result<Restored, Failure> {
        let name = given_name(request.name.as_deref())?;
        self.require_ready(snapshot)?;
        self.require_credits(caller.tenant).await?;
        self.admit(&snapshot.region, Start::Snapshot { memory_bytes: snapshot.memory_bytes }).await?;
        let name = name.unwrap_or_else(|| format!("{}-restored", snapshot.computer_name));
        let id = ComputerId::new();
        let env = self.variables_of(snapshot.tenant_id, snapshot.computer_id, id, &BTreeMap::new()).await?;
        let setup = self.setup_of(snapshot.tenant_id, snapshot.computer_id, id).await?;
        let build = |snapshot: &SnapshotRecord| {
            let attributes = &snapshot.attributes;
            NewComputer {
                id,
                tenant_id: snapshot.tenant_id,
                owner_user_id: caller.user,
                workspace_id: snapshot.workspace_id,
                project_id: snapshot.project_id,
                slug: slugify(&name),
                name: name.clone(),
                template_type: snapshot.template_type.clone(),
                template_digest: snapshot.template_digest.clone(),
                size: snapshot.size,
                external_workspace_id: attributes.external_workspace_id.clone(),
                external_user_id: attributes.external_user_id.clone(),
                external_project_id: attributes.external_project_id.clone(),
                selected_apps: attributes.selected_apps.clone(),
                metadata: attributes.metadata.clone(),
                visibility: attributes.visibility,
                auto_stop: attributes.auto_stop,
                timeout: attributes.timeout,
                screen: attributes.screen,
                always_on: false,
                disk_gib: snapshot.disk_gib,
                region: snapshot.region.clone(),
                snapshot: Some(snapshot.id),
                layer: snapshot.layer,
                last_snapshot: Some(snapshot.id),
                env: env.clone(),
                setup: setup.clone(),
            }
        };
        match self.inner.store.insert_from_snapshot(snapshot.id, build).await? {
            FromSnapshot::Inserted(inserted) => {
                let (record, workflow, snapshot) = *inserted;
                tracing::info!(computer = %record.id, slug = record.slug, snapshot = %snapshot.id, "restored");
                self.inner.hub.notify(record.id);
                let handle = self.run_workflow(workflow);
                Ok(Restored { record, snapshot, handle })
            }
            FromSnapshot::Missing => Err(Failure::snapshot_not_found()),
            FromSnapshot::NotReady(status) => Err(not_ready(status)),
        }
    }

    /// Deletes a snapshot and frees what nobody else needs.
    pub async fn delete_snapshot(&self, id: SnapshotId) -> Result<SnapshotRecord, Failure> {
        match self.inner.store.delete_snapshot(id).await? {
            Deletion::Deleted(record) => {
                self.inner.snapshot_hub.notify(id);
                if let Err(failure) = self.collect().await {
                    // It is deleted for good; its files go when the task tries again.
                    tracing::error!(snapshot = %id, failure = &failure as &dyn std::error::Error,
                        "failed to free the storage of a snapshot");
                }
                // What it lay on may serve one layer only now.
                self.inner.storage.changed();
                Ok(*record)
            }
            Deletion::Missing => Err(Failure::snapshot_not_found()),
            Deletion::InUse(dependents) => Err(in_use(&dependents)),
        }
    }

    /// Deletes many; those that something needs stay and are named.
    pub async fn delete_snapshots(
        &self,
        caller: &Caller,
        request: DeleteSnapshots,
    ) -> Result<DeletedSnapshots, Failure> {
        let ids = match (request.ids, request.resource_id, request.all) {
            (Some(ids), None, _) => ids,
            (None, Some(resource), Some(true)) => {
                if request.confirm.as_deref() != Some(resource.as_str()) {
                    return Err(ApiError::field("confirm", "not the same as resource_id").into());
                }
                let computer = filter_id("resource_id", Some(&resource))?;
                let filter = SnapshotFilter { computer, ..SnapshotFilter::default() };
                let found = self.inner.store.snapshots(Some(&access::reach(caller)), &filter).await?;
                found.iter().map(|snapshot| snapshot.id.to_string()).collect()
            }
            _ => {
                let problem = "give ids, or resource_id with all: true and confirm";
                return Err(ApiError::field("ids", problem).into());
            }
        };
        let mut outcome = DeletedSnapshots::default();
        for text in ids {
            let found = match text.parse() {
                Ok(id) => self.snapshot(caller, id, Act::Write).await.ok(),
                Err(_) => None,
            };
            let Some(found) = found else {
                outcome.not_found.push(text);
                continue;
            };
            match self.inner.store.delete_snapshot(found.id).await? {
                Deletion::Deleted(_) => {
                    self.inner.snapshot_hub.notify(found.id);
                    outcome.deleted.push(text);
                }
                Deletion::Missing => outcome.not_found.push(text),
                Deletion::InUse(dependents) => {
                    let dependents = dependents.iter().map(dependent_view).collect();
                    outcome.blocked.push(BlockedSnapshot { id: text, dependents });
                }
            }
        }
        self.inner.storage.changed();
        if outcome.deleted.is_empty() && outcome.not_found.is_empty() && !outcome.blocked.is_empty() {
            let message = "every one of these snapshots is in use; details.blocked says by what";
            let details = json!({ "blocked": outcome.blocked });
            return Err(ApiError::new(ErrorCode::SnapshotInUse, message).with_details(details).into());
        }
        Ok(outcome)
    }

    /// The tenant's snapshots as their computers' routes show them, newest first.
    pub async fn snapshots(&self, caller: &Caller, query: &ListSnapshots) -> Result<Vec<Snapshot>, Failure> {
        let found = self.inner.store.snapshots(Some(&access::reach(caller)), &filter(query, false)?).await?;
        Ok(found.iter().map(|record| self.snapshot_view(record)).collect())
    }

    /// The tenant's snapshots, newest first.
    pub async fn account_snapshots(
        &self,
        caller: &Caller,
        query: &ListSnapshots,
    ) -> Result<Vec<AccountSnapshot>, Failure> {
        let found = self.inner.store.snapshots(Some(&access::reach(caller)), &filter(query, false)?).await?;
        let mut rows = Vec::with_capacity(found.len());
        for record in &found {
            rows.push(self.account_view(record).await?);
        }
        Ok(rows)
    }

    pub async fn snapshot_groups(
        &self,
        caller: &Caller,
        query: &ListSnapshots,
    ) -> Result<Vec<SnapshotGroup>, Failure> {
        let groups = self.inner.store.snapshot_groups(&access::reach(caller), &filter(query, false)?).await?;
        let mut rows = Vec::with_capacity(groups.len());
        for group in groups {
            rows.push(SnapshotGroup {
                resource_id: group.computer,
                resource: SnapshotResource {
                    kind: "computer".to_owned(),
                    id: group.computer,
                    name: group.computer_name,
                    state: self.computer_state(group.computer).await?,
                    workspace_id: group.workspace,
                },
                snapshot_count: group.count,
                stored_bytes: group.stored_bytes,
                latest_at: group.latest_at,
            });
        }
        Ok(rows)
    }

    pub async fn named_snapshots(
        &self,
        caller: &Caller,
        query: &ListSnapshots,
    ) -> Result<Vec<NamedSnapshot>, Failure> {
        let found = self.inner.store.snapshots(Some(&access::reach(caller)), &filter(query, true)?).await?;
        let mut rows = Vec::with_capacity(found.len());
        for record in &found {
            rows.push(self.named_view(record).await?);
        }
        Ok(rows)
    }

    pub async fn named_snapshot(
        &self,
        caller: &Caller,
        name: &str,
        act: Act,
    ) -> Result<SnapshotRecord, Failure> {
        let found = self.inner.store.snapshot_by_name(caller.tenant, name).await?;
        let found = found.ok_or_else(Failure::snapshot_not_found)?;
        access::check(caller, &found, act).map_err(|denied| denied.about("snapshot"))?;
        Ok(found)
    }

    /// Gives a snapshot, or the newest ready one of a computer, a name.
    pub async fn name_snapshot(
        &self,
        caller: &Caller,
        request: NameSnapshot,
    ) -> Result<SnapshotRecord, Failure> {
        let name = request.name.as_deref().map(str::trim).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| ApiError::field("name", "is required"))?;
        let fits = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
        if name.len() > LONGEST_SNAPSHOT_NAME || !name.chars().all(fits) {
            let problem = "not 1 to 63 letters, digits, dots, underscores and hyphens";
            return Err(ApiError::field("name", problem).into());
        }
        if request.sandbox_id.is_some() {
            return Err(ApiError::field("sandbox_id", "there are no sandboxes here").into());
        }
        let id = match (&request.snapshot_id, &request.computer_id) {
            (Some(snapshot), None) => {
                let id = snapshot.parse().map_err(|_| Failure::snapshot_not_found())?;
                self.snapshot(caller, id, Act::Write).await?.id
            }
            (None, Some(computer)) => {
                let computer = computer.parse().map_err(|_| Failure::computer_not_found())?;
                self.get(caller, computer).await?;
                let filter = SnapshotFilter {
                    computer: Some(computer),
                    status: Some(SnapshotStatus::Ready),
                    ..SnapshotFilter::default()
                };
                let found = self.inner.store.snapshots(Some(&access::reach(caller)), &filter).await?;
                let newest = found.iter().find(|snapshot| snapshot.name.is_none());
                let none = "the computer has no ready snapshot without a name; take one first";
                newest
                    .map(|found| found.id)
                    .ok_or_else(|| Failure::new(ErrorCode::NoSnapshotAvailable, none))?
            }
            _ => {
                let problem = "give exactly one of snapshot_id and computer_id";
                return Err(ApiError::field("snapshot_id", problem).into());
            }
        };
        match self.inner.store.name_snapshot(caller.tenant, id, name).await? {
            Naming::Named(record) => Ok(*record),
            Naming::Missing => Err(Failure::snapshot_not_found()),
            Naming::NotReady(status) => Err(not_ready(status)),
            Naming::AlreadyNamed(other) => {
                let message = format!("the snapshot is named {other:?} already; release that name first");
                Err(Failure::new(ErrorCode::SnapshotAlreadyNamed, message))
            }
            Naming::Taken => {
                let message = format!("another snapshot is named {name:?}; release that name or use another");
                Err(Failure::new(ErrorCode::NameTaken, message))
            }
        }
    }

    /// Takes the name of a snapshot away. What it was called is in the answer.
    pub async fn release_name(&self, record: &SnapshotRecord) -> Result<(), Failure> {
        self.inner.store.release_name(record.id).await?;
        self.inner.storage.changed();
        Ok(())
    }

    pub async fn dependents(&self, record: &SnapshotRecord) -> Result<Vec<SnapshotDependent>, Failure> {
        let dependents = self.inner.store.snapshot_dependents(record).await?;
        Ok(dependents.iter().map(dependent_view).collect())
    }

    /// How the taking of a snapshot goes: what is so now, then every change, up to and including the end.
    pub fn snapshot_events(&self, id: SnapshotId) -> impl Stream<Item = SnapshotEvent> + Send + use<> {
        let changes = self.inner.snapshot_hub.subscribe(id);
        let state = Some((self.clone(), changes, None));
        futures_util::stream::unfold(state, move |state| async move {
            let (control, mut changes, mut last) = state?;
            loop {
                let event = control.snapshot_event(id).await?;
                let over = match event.status {
                    SnapshotState::Creating | SnapshotState::Uploading => false,
                    SnapshotState::Ready
                    | SnapshotState::Restoring
                    | SnapshotState::Failed
                    | SnapshotState::Deleted => true,
                };
                if last.as_ref() != Some(&event) {
                    last = Some(event.clone());
                    return Some((event, (!over).then_some((control, changes, last))));
                }
                if changes.changed().await.is_err() {
                    changes = control.inner.snapshot_hub.subscribe(id);
                }
            }
        })
    }

    /// `None` ends the stream: the database does not answer.
    async fn snapshot_event(&self, id: SnapshotId) -> Option<SnapshotEvent> {
        let found = match self.inner.store.snapshot(id).await {
            Ok(found) => found,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(snapshot = %id, error, "failed to read a snapshot");
                return None;
            }
        };
        let kind = "snapshot_progress".to_owned();
        Some(match found {
            Some(found) => SnapshotEvent {
                kind,
                snapshot_id: id,
                status: state_of(found.status, false),
                step: found.step,
                progress: found.progress,
                error: found.error,
            },
            None => {
                let status = SnapshotState::Deleted;
                SnapshotEvent { kind, snapshot_id: id, status, step: None, progress: 100, error: None }
            }
        })
    }

    /// The snapshot as callers see it.
    pub fn snapshot_view(&self, record: &SnapshotRecord) -> Snapshot {
        let ready = record.layer.is_some();
        Snapshot {
            id: record.id,
            computer_id: record.computer_id,
            tenant_id: record.tenant_id,
            name: record.name.clone(),
            comment: record.comment.clone(),
            status: state_of(record.status, record.restoring),
            state_size_bytes: ready.then_some(total(record)),
            memory_size_bytes: record.memory_bytes,
            rootfs_size_bytes: ready.then_some(record.disk_bytes),
            compressed_size_bytes: None,
            s3_bucket: None,
            s3_prefix: None,
            parent_snapshot_id: record.parent,
            keep: record.keep,
            retention_seconds: record.retention_seconds,
            expires_at: record.expires_at,
            pause_ms: record
                .pause_us
                .and_then(|pause| u32::try_from(pause).ok())
                .map(|us| f64::from(us) / 1000.0),
            error: record.error.clone(),
            created_at: record.created_at,
            updated_at: record.updated_at,
        }
    }

    /// The snapshot as a row of the history.
    pub async fn account_view(&self, record: &SnapshotRecord) -> Result<AccountSnapshot, Failure> {
        Ok(AccountSnapshot {
            id: record.id,
            resource: SnapshotResource {
                kind: "computer".to_owned(),
                id: record.computer_id,
                name: record.computer_name.clone(),
                state: self.computer_state(record.computer_id).await?,
                workspace_id: record.workspace_id,
            },
            status: state_of(record.status, record.restoring),
            comment: record.comment.clone(),
            size_bytes: total(record),
            disk_bytes: record.disk_bytes,
            memory_bytes: record.memory_bytes,
            keep: record.keep,
            named_snapshot: record.name.clone(),
            browsable: record.layer.is_some(),
            parent_snapshot_id: record.parent,
            error: record.error.clone(),
            created_at: record.created_at,
            expires_at: record.expires_at,
            last_used_at: record.last_used_at,
        })
    }

    /// A snapshot that has a name.
    pub async fn named_view(&self, record: &SnapshotRecord) -> Result<NamedSnapshot, Failure> {
        Ok(NamedSnapshot {
            name: record.name.clone().unwrap_or_default(),
            snapshot_id: record.id,
            workspace_id: record.workspace_id,
            snapshot: self.account_view(record).await?,
        })
    }

    async fn computer_state(&self, id: ComputerId) -> Result<Option<String>, Failure> {
        let found = self.inner.store.computer(id).await?;
        Ok(found.map(|record| status(&record).as_str().to_owned()))
    }
}

/// What a request says, else what the source has.
fn or_else(wanted: &Option<String>, source: &Option<String>) -> Option<String> {
    wanted.clone().or_else(|| source.clone())
}

/// A clone goes on in its source's memory, so it has its size, and where that is.
fn check_clone(source: &ComputerRecord, request: &CloneComputer) -> Result<(), ApiError> {
    if let Some(text) = &request.size {
        let size: Size = text
            .parse()
            .map_err(|error: roost_api::UnknownSize| ApiError::field("size", error.to_string()))?;
        if size != source.size {
            let problem = format!(
                "a clone has the size of its source, which is {}; resize it when it is stopped",
                source.size.as_str()
            );
            return Err(ApiError::field("size", problem));
        }
    }
    if let Some(region) = request.region.as_deref().map(str::trim).filter(|region| !region.is_empty())
        && region != source.region.as_str()
    {
        let problem =
            format!("a clone is where its source is, which is {}; move it when it is stopped", source.region);
        return Err(ApiError::field("region", problem));
    }
    Ok(())
}

fn total(record: &SnapshotRecord) -> u64 {
    record.disk_bytes + record.memory_bytes.unwrap_or(0)
}

fn state_of(status: SnapshotStatus, restoring: bool) -> SnapshotState {
    match status {
        SnapshotStatus::Creating => SnapshotState::Creating,
        SnapshotStatus::Ready if restoring => SnapshotState::Restoring,
        SnapshotStatus::Ready => SnapshotState::Ready,
        SnapshotStatus::Failed => SnapshotState::Failed,
        SnapshotStatus::Deleted => SnapshotState::Deleted,
    }
}

fn new_snapshot(purpose: SnapshotPurpose) -> NewSnapshot {
    NewSnapshot {
        id: SnapshotId::new(),
        layer: LayerId::new(),
        purpose,
        comment: None,
        keep: false,
        expires_at: None,
        retention_seconds: None,
    }
}

/// A name for a new computer, where one is given.
fn given_name(name: Option<&str>) -> Result<Option<String>, ApiError> {
    let name = name.map(str::trim).filter(|name| !name.is_empty());
    if let Some(name) = name {
        check_name(name)?;
    }
    Ok(name.map(str::to_owned))
}

fn wanted_size(request: &ResizeComputer) -> Result<Size, ApiError> {
    if let Some(text) = &request.size {
        return text
            .parse()
            .map_err(|error: roost_api::UnknownSize| ApiError::field("size", error.to_string()));
    }
    let (Some(cpus), Some(memory)) = (request.cpu_count, request.memory_mb) else {
        return Err(ApiError::field("size", "is required: xs, small, medium, large or xl"));
    };
    let fits = |size: &Size| size.vcpus() == cpus && size.memory().0 == memory;
    Size::ALL.into_iter().find(fits).ok_or_else(|| {
        let problem = format!("no size has {cpus} CPUs and {memory} MiB of memory; name a size instead");
        ApiError::field("cpu_count", problem)
    })
}

pub(crate) fn must_be_stopped(now: Status, verb: &str) -> Failure {
    let details = json!({ "status": now.as_str() });
    let message = format!("computer must be stopped to {verb}");
    ApiError::new(ErrorCode::ResourceState, message).with_details(details).into()
}

pub(crate) fn not_ready(status: SnapshotStatus) -> Failure {
    let message = match status {
        SnapshotStatus::Creating => "the snapshot is still being taken; wait until it is ready",
        SnapshotStatus::Failed => "the snapshot could not be taken; its error says why",
        SnapshotStatus::Ready | SnapshotStatus::Deleted => "the snapshot is deleted",
    };
    Failure::new(ErrorCode::SnapshotNotReady, message)
}

fn in_use(dependents: &[Dependent]) -> Failure {
    let dependents: Vec<SnapshotDependent> = dependents.iter().map(dependent_view).collect();
    let message = "the snapshot is in use; details.dependents says by what";
    let details = json!({ "dependents": dependents });
    ApiError::new(ErrorCode::SnapshotInUse, message).with_details(details).into()
}

fn dependent_view(dependent: &Dependent) -> SnapshotDependent {
    SnapshotDependent {
        kind: dependent.kind.as_str().to_owned(),
        id: dependent.id.clone(),
        name: dependent.name.clone(),
    }
}

fn filter(query: &ListSnapshots, named: bool) -> Result<SnapshotFilter, ApiError> {
    let computer = query.resource_id.as_deref().or(query.computer_id.as_deref());
    let status = match query.status.as_deref() {
        None | Some("") => None,
        Some("uploading") => Some(SnapshotStatus::Creating),
        Some("restoring") => Some(SnapshotStatus::Ready),
        Some(text) => Some(text.parse().map_err(|_| ApiError::field("status", "not a status of snapshots"))?),
    };
    check_filter("q", query.q.as_deref())?;
    let limit = query.limit.unwrap_or(50).clamp(1, 200);
    Ok(SnapshotFilter {
        computer: filter_id("resource_id", computer)?,
        workspace: filter_id("workspace_id", query.workspace_id.as_deref())?,
        search: query.q.clone().filter(|text| !text.is_empty()),
        status,
        named,
        page: Some((limit, query.offset.unwrap_or(0))),
    })
}
