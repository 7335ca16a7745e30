//! Computers: create, list, read, change, start, stop, restart, delete.

use std::collections::BTreeMap;
use std::time::Duration;

use roost_api::{
    ApiError, Computer, ComputerId, ComputerList, CreateComputer, ErrorCode, ListComputers, Order, PageMeta,
    ScreenSize, Size, StartComputer, Status, UpdateComputer, Visibility, WorkspacePolicy,
};
use roost_store::{
    Begin, Caller, ComputerChange, ComputerFilter, ComputerRecord, NewComputer, NewVariable, WorkflowKind,
};
use serde_json::{Map, Value};

use crate::access::{self, Act};
use crate::catalog::DESKTOP;
use crate::places::{external_id, wanted_place};
use crate::setup::setup_status;
use crate::slug::slugify;
use crate::status::status;
use crate::workflow::{Handle, Start};
use crate::{Control, Failure, app_catalog};

const LONGEST_NAME: usize = 200;
const MOST_METADATA: usize = 16 * 1024;
/// How long a delete waits for a capture before it is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A computer that was just made, and what to wait for until it runs.
#[derive(Debug)]
pub struct Created {
    pub record: ComputerRecord,
    pub(crate) handle: Handle,
}

impl Created {
    /// Waits until the computer runs or its creation failed, and says whether it runs. Why it failed is in the
    /// computer.
    pub async fn ended(self) -> bool {
        self.handle.ended().await.is_ok()
    }
}

impl Control {
    pub async fn create(&self, caller: &Caller, mut request: CreateComputer) -> Result<Created, Failure> {
        let CreateComputer { external_workspace_id, external_user_id, external_project_id, .. } =
            &mut request;
        let user = customer(caller, [external_workspace_id, external_user_id, external_project_id])?;
        request.external_user_id = user;
        let missing = || ApiError::new(ErrorCode::MissingParam, "name is required");
        let name =
            request.name.as_deref().map(str::trim).filter(|name| !name.is_empty()).ok_or_else(missing)?;
        let template = request.template_type.as_deref().or(request.template_id.as_deref());
        let template = template.map(str::trim).filter(|name| !name.is_empty()).ok_or_else(missing)?;
        check_name(name)?;
        let size = wanted_size(&request)?;
        let region = self.wanted_region(request.region.as_deref())?;
        if template != DESKTOP {
            let problem = format!("unknown template {template:?}: use {DESKTOP}");
            return Err(ApiError::field("template_type", problem).into());
        }
        let files = self.inner.templates.current(template)?.ok_or_else(|| {
            Failure::new(
                ErrorCode::NoReadyMachine,
                format!("the template {template} is not built on this host yet: run `roost image build`"),
            )
        })?;
        self.require_credits(caller.tenant).await?;
        let warm = self.inner.templates.warm(template, &files.digest, size)?;
        self.admit(&region, if warm.is_some() { Start::Warm } else { Start::Booted }).await?;
        let id = ComputerId::new();
        let env = self.new_variables(caller.tenant, id, &request.env.clone().unwrap_or_default())?;
        let setup = self.new_setup(caller.tenant, id, request.setup_file.take())?;
        let always_on = request.always_on.unwrap_or(false);
        let wanted = wanted_place(caller, &request)?;
        let selected_apps = app_catalog::check("selected_apps", request.selected_apps.unwrap_or_default())?;
        let metadata = metadata(request.metadata)?;
        let build = |workspace_id, project_id, policy: &WorkspacePolicy| NewComputer {
            id,
            tenant_id: caller.tenant,
            owner_user_id: caller.user,
            workspace_id,
            project_id,
            name: name.to_owned(),
            slug: slugify(name),
            template_type: template.to_owned(),
            template_digest: files.digest,
            size,
            external_workspace_id: request.external_workspace_id,
            external_user_id: request.external_user_id,
            external_project_id: request.external_project_id,
            selected_apps,
            metadata,
            visibility: request.visibility.unwrap_or(Visibility::Tenant),
            auto_stop: match request.idle_timeout_sec.or(policy.default_auto_stop_seconds) {
                Some(seconds) if !always_on => seconds,
                Some(_) | None => 0,
            },
            timeout: request.timeout_sec.unwrap_or(0),
            screen: ScreenSize::DEFAULT,
            always_on,
            disk_gib: size.disk_gib(),
            region,
            snapshot: None,
            layer: None,
            last_snapshot: None,
            env,
            setup,
        };
        let (record, workflow) = self.insert_where_wanted(caller, &wanted, build).await?;
        tracing::info!(computer = %record.id, slug = record.slug, size = size.as_str(), "created");
        self.inner.hub.notify(record.id);
        let handle = self.run_workflow(workflow);
        Ok(Created { record, handle })
    }

    pub async fn list(&self, caller: &Caller, query: &ListComputers) -> Result<ComputerList, Failure> {
        let statuses = (query.status.is_some() || query.state.is_some()).then(|| {
            let is_wanted = |status: &Status| {
                query.status.as_deref().is_none_or(|wanted| status.as_str() == wanted)
                    && query
                        .state
                        .as_deref()
                        .is_none_or(|wanted| status.as_str() == wanted || status.state() == wanted)
            };
            Status::ALL.into_iter().filter(is_wanted).collect()
        });
        let order = match query.sort.as_deref().filter(|sort| !sort.is_empty()) {
            None => Order::default(),
            Some(text) => Order::parse(text).ok_or_else(|| {
                let known = Order::ALL.map(Order::as_str).join(", ");
                ApiError::field("sort", format!("{text:?} is none of {known}"))
            })?,
        };
        let size = query.page_size.or(query.per_page).or(query.limit);
        let page = match (query.page, size) {
            (None, None) => None,
            (page, size) => Some((page.unwrap_or(1).max(1), u64::from(size.unwrap_or(20).clamp(1, 100)))),
        };
        for (field, text) in [
            ("search", &query.search),
            ("external_workspace_id", &query.external_workspace_id),
            ("external_user_id", &query.external_user_id),
            ("external_project_id", &query.external_project_id),
        ] {
            check_filter(field, text.as_deref())?;
        }
        let filter = ComputerFilter {
            workspace: filter_id("workspace_id", query.workspace_id.as_deref())?,
            project: filter_id("project_id", query.project_id.as_deref())?,
            external_workspace_id: query.external_workspace_id.clone(),
            external_user_id: query.external_user_id.clone(),
            external_project_id: query.external_project_id.clone(),
            search: query.search.clone(),
            statuses,
            order,
            page: page.map(|(page, per_page)| (per_page, u64::from(page - 1) * per_page)),
        };
        let (store, reach) = (&self.inner.store, access::reach(caller));
        let records = store.computers(&reach, &filter).await?;
        let total = match page {
            None => records.len() as u64,
            Some(_) => store.count_computers(&reach, &filter).await?,
        };
        let (page, per_page) = page.unwrap_or((1, total.max(1)));
        let total_pages = total.div_ceil(per_page).max(1);
        let rows: Vec<Computer> = records.iter().map(|record| self.computer_view(record)).collect();
        Ok(ComputerList {
            data: rows.clone(),
            computers: rows,
            total,
            meta: PageMeta {
                page,
                per_page,
                limit: per_page,
                total,
                total_pages,
                has_next_page: u64::from(page) < total_pages,
                next_cursor: None,
            },
        })
    }

    /// The computer if the caller may use and change it. Another tenant's is not there.
    pub async fn get(&self, caller: &Caller, id: ComputerId) -> Result<ComputerRecord, Failure> {
        self.get_for(caller, id, Act::Write).await
    }

    /// The computer if the caller may do that with it.
    pub async fn get_for(
        &self,
        caller: &Caller,
        id: ComputerId,
        act: Act,
    ) -> Result<ComputerRecord, Failure> {
        let record = self.record(id).await?;
        access::check(caller, &record, act).map_err(|denied| denied.about("computer"))?;
        Ok(record)
    }

    pub async fn update(&self, id: ComputerId, request: UpdateComputer) -> Result<ComputerRecord, Failure> {
        let name = request.name.as_deref().map(str::trim);
        if let Some(name) = name {
            if name.is_empty() {
                return Err(Failure::new(ErrorCode::MissingParam, "name is required"));
            }
            check_name(name)?;
        }
        let change = ComputerChange {
            name: name.map(str::to_owned),
            agent_session_id: request.agent_session_id,
            metadata: request.metadata.map(|map| metadata(Some(map))).transpose()?,
            visibility: request.visibility,
            always_on: request.always_on,
            auto_stop: None,
            timeout: request.timeout_sec.map(Option::unwrap_or_default),
            screen: None,
        };
        let record = self.inner.store.change_computer(id, &change).await?;
        self.inner.hub.notify(id);
        record.ok_or_else(Failure::computer_not_found)
    }

    /// Starts a stopped or failed computer and returns when it runs. One that is already on its way is
    /// waited for.
    pub async fn start_computer(&self, id: ComputerId) -> Result<ComputerRecord, Failure> {
        self.start_with(id, StartComputer::default()).await
    }

    /// The same with variables that it has until its next start.
    pub async fn start_with(
        &self,
        id: ComputerId,
        request: StartComputer,
    ) -> Result<ComputerRecord, Failure> {
        let record = self.record(id).await?;
        let env = self.start_variables(&record, &request.env.unwrap_or_default()).await?;
        let handle = match status(&record) {
            Status::Provisioning | Status::Starting if !env.is_empty() => {
                let message = "the computer is starting already; variables are given with the request that begins a \
                               start, or kept with POST /env";
                return Err(Failure::new(ErrorCode::InvalidState, message));
            }
            Status::Provisioning | Status::Starting => self.handle(id).await?,
            now => {
                if matches!(now, Status::Stopped | Status::Error) {
                    self.require_credits(record.tenant_id).await?;
                    self.admit(&record.region, Start::Booted).await?;
                }
                let allowed = [Status::Stopped, Status::Error];
                Some(self.begin(id, WorkflowKind::Start, &env, &allowed, "started").await?)
            }
        };
        if let Some(handle) = handle {
            handle.ended().await.map_err(start_failure)?;
        }
        self.record(id).await
    }

    /// Saves the computer's memory beside its disk and returns when it is off. Where that is refused it runs on.
    pub async fn stop(&self, id: ComputerId) -> Result<ComputerRecord, Failure> {
        let handle = self.begin(id, WorkflowKind::Stop, &[], &[Status::Running], "stopped").await?;
        handle.ended().await.map_err(|error| match error.code {
            ErrorCode::ResourceState | ErrorCode::NoReadyMachine => {
                let message = format!("the computer could not be stopped and runs on: {error}");
                Failure::new(ErrorCode::ResourceState, message)
            }
            ErrorCode::InvalidState => Failure::new(error.code, error.message),
            _ => Failure::new(ErrorCode::Internal, error.message),
        })?;
        self.record(id).await
    }

    /// Reboots the computer and returns when it runs again.
    pub async fn restart(&self, id: ComputerId) -> Result<ComputerRecord, Failure> {
        let handle = self.begin(id, WorkflowKind::Restart, &[], &[Status::Running], "restarted").await?;
        handle.ended().await.map_err(start_failure)?;
        self.record(id).await
    }

    /// Removes the computer with everything it has; whatever else is at work on it is given up first. A capture
    /// gets a while to end by itself, for the sake of the clone or snapshot that somebody waits for.
    pub async fn delete(&self, id: ComputerId) -> Result<(), Failure> {
        let internal = |error: ApiError| Failure::new(ErrorCode::Internal, error.message);
        loop {
            let store = &self.inner.store;
            let begun = store
                .begin_workflow(id, WorkflowKind::Delete, None, |record| match record.intended {
                    None => Ok(()),
                    Some(kind) => Err(kind),
                })
                .await?;
            match begun {
                Begin::Begun(workflow) => {
                    self.inner.hub.notify(id);
                    return self.run_workflow(workflow).ended().await.map_err(internal);
                }
                Begin::Missing => return Err(Failure::computer_not_found()),
                Begin::Refused(WorkflowKind::Delete) => {
                    return match self.handle(id).await? {
                        Some(handle) => handle.ended().await.map_err(internal),
                        None => Ok(()),
                    };
                }
                Begin::Refused(WorkflowKind::Capture | WorkflowKind::Resize) => {
                    match tokio::time::timeout(PATIENCE, self.moment(id)).await {
                        Ok(ended) => ended?,
                        Err(_) => drop(self.cancel(id).await?),
                    }
                }
                Begin::Refused(_) => match self.cancel(id).await? {
                    Some(handle) => drop(handle.ended().await),
                    // It ended between our two looks; its last transaction may still be on its way.
                    None => tokio::task::yield_now().await,
                },
            }
        }
    }

    /// Waits for work of a moment that is done on the computer now.
    pub(crate) async fn moment(&self, id: ComputerId) -> Result<(), Failure> {
        match self.handle(id).await? {
            Some(handle) => drop(handle.ended().await),
            // It ended between our two looks, or is just being begun.
            None => tokio::task::yield_now().await,
        }
        Ok(())
    }

    /// Waits until the computer's row or its machine changes, then looks again, until `done` says so.
    pub async fn wait_until(
        &self,
        id: ComputerId,
        done: impl Fn(&ComputerRecord) -> bool,
    ) -> Result<ComputerRecord, Failure> {
        let mut changes = self.inner.hub.subscribe(id);
        loop {
            let record = self.record(id).await?;
            if done(&record) {
                return Ok(record);
            }
            if changes.changed().await.is_err() {
                changes = self.inner.hub.subscribe(id);
            }
        }
    }

    pub(crate) async fn record(&self, id: ComputerId) -> Result<ComputerRecord, Failure> {
        self.inner.store.computer(id).await?.ok_or_else(Failure::computer_not_found)
    }

    async fn begin(
        &self,
        id: ComputerId,
        kind: WorkflowKind,
        env: &[NewVariable],
        allowed: &[Status],
        verb: &str,
    ) -> Result<Handle, Failure> {
        loop {
            let begun = self.inner.store.begin_workflow_with(id, kind, None, env, |record| {
                if record.intended.is_some_and(WorkflowKind::is_brief) {
                    return Err(None);
                }
                let now = status(record);
                if record.intended.is_none() && allowed.contains(&now) { Ok(()) } else { Err(Some(now)) }
            });
            match begun.await? {
                Begin::Begun(workflow) => {
                    self.inner.hub.notify(id);
                    return Ok(self.run_workflow(workflow));
                }
                Begin::Missing => return Err(Failure::computer_not_found()),
                Begin::Refused(None) => self.moment(id).await?,
                Begin::Refused(Some(now)) => {
                    let message = match kind {
                        WorkflowKind::Restart => "computer must be running to restart".to_owned(),
                        _ => format!("computer cannot be {verb} from its current status"),
                    };
                    let details = serde_json::json!({ "status": now.as_str() });
                    return Err(ApiError::new(ErrorCode::InvalidState, message).with_details(details).into());
                }
            }
        }
    }

    /// The computer as callers see it.
    pub fn computer_view(&self, record: &ComputerRecord) -> Computer {
        let urls = &self.inner.config.urls;
        let status = status(record);
        let preview_domain = self.preview_domain_of(record);
        Computer {
            id: record.id,
            tenant_id: record.tenant_id,
            owner_user_id: record.owner_user_id,
            name: record.name.clone(),
            slug: record.slug.clone(),
            template_type: record.template_type.clone(),
            size: record.size,
            vcpus: record.size.vcpus(),
            cpu_count: record.size.vcpus(),
            memory_mb: record.size.memory().0,
            disk_size_mb: record.disk_gib * 1024,
            status,
            state: status.state().to_owned(),
            ready: status == Status::Running,
            vm_id: record.provisioned.then(|| format!("{}-{}", record.id, record.generation)),
            workspace_id: record.workspace_id,
            project_id: record.project_id,
            external_workspace_id: record.external_workspace_id.clone(),
            external_user_id: record.external_user_id.clone(),
            external_project_id: record.external_project_id.clone(),
            sandbox_url: format!("{}://{}.sandbox.{preview_domain}", urls.scheme, record.slug),
            desktop_url: self.desktop_url(record),
            preview_domain,
            ip_address: None,
            selected_apps: record.selected_apps.clone(),
            settings: Map::new(),
            ai_config: Map::new(),
            agent_session_id: record.agent_session_id.clone(),
            agent_status: None,
            resolution: record.screen.to_string(),
            auto_stop: record.auto_stop,
            timeout_sec: Some(record.timeout).filter(|seconds| *seconds > 0),
            timeout_remaining_ms: self.remaining_ms(record),
            setup_status: record.setup.map(setup_status),
            region: Some(record.region.to_string()),
            metadata: record.metadata.clone(),
            visibility: record.visibility,
            persistent: true,
            always_on: record.always_on,
            memory_lost: record.memory_lost.clone(),
            error: (status == Status::Error).then(|| record.failure.clone()).flatten(),
            created_at: record.created_at,
            updated_at: record.updated_at,
            started_at: record.started_at,
            ready_at: record.ready_at,
            destroyed_at: None,
        }
    }
}

/// Makes the external ids of a new computer (of a workspace, a user, a project) what they are to be, and answers whose
/// it is. A key that is confined to an end user makes computers of theirs only.
pub(crate) fn customer(caller: &Caller, ids: [&mut Option<String>; 3]) -> Result<Option<String>, Failure> {
    let [workspace, user, project] = ids;
    *workspace = external_id("external_workspace_id", workspace.take())?;
    *user = external_id("external_user_id", user.take())?;
    *project = external_id("external_project_id", project.take())?;
    match &caller.confinement.external_user {
        Some(only) if user.as_ref().is_some_and(|id| id != only) => Err(access::confined()),
        Some(only) => Ok(Some(only.clone())),
        None => Ok(user.clone()),
    }
}

/// The size that a request names, or the smallest that has at least what it asks for.
fn wanted_size(request: &CreateComputer) -> Result<Size, ApiError> {
    if request.gpu_count.is_some_and(|count| count > 0)
        || request.gpu_model.as_deref().is_some_and(|model| !model.trim().is_empty())
    {
        return Err(ApiError::field("gpu_count", "computers have no GPU here; leave it out"));
    }
    if let Some(text) = request.size.as_deref() {
        return text
            .parse()
            .map_err(|error: roost_api::UnknownSize| ApiError::field("size", error.to_string()));
    }
    let default = Size::Small;
    let cpus = request.cpu_count.unwrap_or(1);
    let memory = request.memory_mb.unwrap_or(default.memory().0);
    let disk = request.disk_size_mb.unwrap_or(0).div_ceil(1024);
    let fits = |size: &Size| size.vcpus() >= cpus && size.memory().0 >= memory && size.disk_gib() >= disk;
    Size::ALL.into_iter().find(fits).ok_or_else(|| {
        let largest = Size::Xl;
        let problem = format!(
            "no size has that much: the largest, {}, has {} CPUs, {} MiB of memory and {} GiB of disk",
            largest.as_str(),
            largest.vcpus(),
            largest.memory().0,
            largest.disk_gib()
        );
        ApiError::field("cpu_count", problem)
    })
}

/// A host without room says so, and so does a start that a delete has ended; everything else is a start that failed.
fn start_failure(error: ApiError) -> Failure {
    let code = match error.code {
        code @ (ErrorCode::NoReadyMachine | ErrorCode::InvalidState) => code,
        _ => ErrorCode::StartFailed,
    };
    Failure::new(code, error.message)
}

pub(crate) fn check_name(name: &str) -> Result<(), ApiError> {
    if name.chars().count() > LONGEST_NAME {
        return Err(ApiError::field("name", format!("longer than {LONGEST_NAME} characters")));
    }
    if name.chars().any(char::is_control) {
        return Err(ApiError::field("name", "holds a control character"));
    }
    Ok(())
}

/// Metadata values are text on the wire; numbers, booleans and structures are kept as their JSON.
pub(crate) fn metadata(map: Option<Map<String, Value>>) -> Result<BTreeMap<String, String>, ApiError> {
    let text = |value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    let map: BTreeMap<String, String> =
        map.unwrap_or_default().into_iter().map(|(key, value)| (key, text(value))).collect();
    let size: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MOST_METADATA {
        return Err(ApiError::field("metadata", format!("larger than {MOST_METADATA} bytes")));
    }
    Ok(map)
}

/// What SQLite would read up to its NUL, and PostgreSQL not at all.
pub(crate) fn check_filter(field: &str, text: Option<&str>) -> Result<(), ApiError> {
    if text.is_some_and(|text| text.contains('\0')) {
        return Err(ApiError::field(field, "holds a NUL character, which is in no text here"));
    }
    Ok(())
}

pub(crate) fn filter_id<T: std::str::FromStr>(
    field: &str,
    text: Option<&str>,
) -> Result<Option<T>, ApiError> {
    text.map(|text| text.parse().map_err(|_| ApiError::field(field, "not a UUID"))).transpose()
}
