//! The workflows against simulated machines: fail after each step and look for leaks; run each step twice
//! and expect the same; cut the control plane off and let another one finish.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod silent;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use camino::Utf8PathBuf;
use futures_util::StreamExt;
use roost_api::{
    CloneComputer, ComputerId, CreateComputer, CreateSnapshot, ErrorCode, EventId, ForkSnapshot,
    MoveComputer, NameSnapshot, RegionName, ResizeComputer, Size, SnapshotId, SnapshotState, Status,
    UpdateComputer,
};
use roost_control::status::status;
use roost_control::{
    Act, Caller, ComputerRecord, Config, Control, CreditConfig, EventRetention, Failure, FileConfig, NoHook,
    PublicUrls, Regions, SealKey, Sharing, Step, StepHook, StreamKey, TemplateError, TemplateFiles,
    Templates, WarmFiles, plan,
};
use roost_launch::simulated::{Boot, Simulated};
use roost_launch::{Launcher, Report};
use roost_machine_proto::{Accelerator, NetworkSpec};
use roost_store::testing::TestDatabase;
use roost_store::{EventsOf, SnapshotFilter, SnapshotStatus, Store, WorkflowKind};

/// One build; `warm` says whether it has memory.
#[derive(Debug)]
struct OneTemplate {
    warm: bool,
    /// Where somebody asked to put the warm one, in order.
    asked: Mutex<Vec<Size>>,
}

impl Templates for OneTemplate {
    fn current(&self, _name: &str) -> Result<Option<TemplateFiles>, TemplateError> {
        Ok(Some(TemplateFiles {
            digest: "d1".to_owned(),
            base: "/base".into(),
            kernel: "/kernel".into(),
            initrd: "/initrd".into(),
        }))
    }

    fn build(&self, name: &str, _digest: &str) -> Result<Option<TemplateFiles>, TemplateError> {
        self.current(name)
    }

    fn warm(&self, _name: &str, _digest: &str, size: Size) -> Result<Option<WarmFiles>, TemplateError> {
        let there = self.warm || self.asked.lock().unwrap().contains(&size);
        let files = WarmFiles { disk: "/warm/disk".into(), memory: "/warm/memory".into() };
        Ok(there.then_some(files))
    }

    fn warm_target(&self, _name: &str, _digest: &str, size: Size) -> Result<Utf8PathBuf, TemplateError> {
        self.asked.lock().unwrap().push(size);
        Ok("/warm".into())
    }
}

/// Fails once after a given step, or runs every step several times.
#[derive(Debug)]
struct Fault {
    at: Mutex<Option<(WorkflowKind, Step)>>,
    runs: usize,
}

impl Fault {
    fn none() -> Arc<Self> {
        Arc::new(Self { at: Mutex::new(None), runs: 1 })
    }

    fn arm(&self, kind: WorkflowKind, step: Step) {
        *self.at.lock().unwrap() = Some((kind, step));
    }
}

impl StepHook for Fault {
    fn after(&self, kind: WorkflowKind, step: Step) -> Result<(), String> {
        let mut at = self.at.lock().unwrap();
        if *at == Some((kind, step)) {
            *at = None;
            return Err(format!("made to fail after {step:?}"));
        }
        Ok(())
    }

    fn runs(&self) -> usize {
        self.runs
    }
}

/// Stands still for ever after a given step, and says so.
#[derive(Debug)]
struct Stall {
    at: (WorkflowKind, Step),
    reached: Mutex<std::sync::mpsc::Sender<()>>,
}

impl StepHook for Stall {
    fn after(&self, kind: WorkflowKind, step: Step) -> Result<(), String> {
        if self.at == (kind, step) {
            self.reached.lock().unwrap().send(()).unwrap();
            loop {
                std::thread::park();
            }
        }
        Ok(())
    }

    fn runs(&self) -> usize {
        1
    }
}

struct World {
    database: Arc<TestDatabase>,
    store: Store,
    launcher: Arc<Simulated>,
    /// Of the other region.
    far: Arc<Simulated>,
    caller: Caller,
}

fn far() -> RegionName {
    "far".parse().unwrap()
}

impl World {
    async fn new() -> Self {
        Self::on(Arc::new(TestDatabase::new().await), Arc::default(), Arc::default()).await
    }

    /// Connects anew: what an earlier runtime had open went with it.
    async fn on(database: Arc<TestDatabase>, launcher: Arc<Simulated>, far: Arc<Simulated>) -> Self {
        let store = database.store().await;
        let home = store.home().await.unwrap();
        let caller = home.administrator();
        Self { database, store, launcher, far, caller }
    }

    async fn control(&self, hook: Arc<dyn StepHook>) -> Control {
        self.control_with(hook, Arc::new(OneTemplate { warm: true, asked: Mutex::default() })).await
    }

    async fn control_with(&self, hook: Arc<dyn StepHook>, templates: Arc<OneTemplate>) -> Control {
        let regions = Regions::from(self.launcher.clone()).with(far(), self.far.clone());
        self.control_of(regions, hook, templates).await
    }

    async fn control_of(
        &self,
        regions: Regions,
        hook: Arc<dyn StepHook>,
        templates: Arc<OneTemplate>,
    ) -> Control {
        let config = Config {
            urls: PublicUrls {
                origin: "http://127.0.0.1:1".to_owned(),
                scheme: "http".to_owned(),
                domain: "localhost:1".to_owned(),
            },
            accelerator: Accelerator::Tcg,
            network: NetworkSpec::default(),
            stream_key: StreamKey::from_bytes([1; 32]),
            seal_key: SealKey::from_bytes([2; 32]),
            disk_directories: Vec::new(),
            events: EventRetention::default(),
            outbound: Arc::new(silent::Silent),
            resolver: Arc::new(roost_control::SystemResolver),
            credits: CreditConfig::default(),
            sharing: Sharing::default(),
            files: FileConfig::default(),
        };
        Control::start(self.store.clone(), regions, templates, config, hook).await.unwrap()
    }

    async fn create(&self, control: &Control) -> ComputerId {
        let request = CreateComputer {
            name: Some("box".to_owned()),
            template_type: Some("miosa-desktop".to_owned()),
            ..CreateComputer::default()
        };
        let created = control.create(&self.caller, request).await.unwrap();
        let id = created.record.id;
        created.ended().await;
        id
    }

    async fn status(&self, id: ComputerId) -> Option<Status> {
        self.store.computer(id).await.unwrap().as_ref().map(status)
    }

    /// A clone whose creation has ended, one way or the other.
    async fn clone_of(&self, control: &Control, id: ComputerId) -> ComputerId {
        let clone = control.clone_computer(&self.caller, id, CloneComputer::default()).await.unwrap();
        let new = clone.record.id;
        clone.ended().await;
        self.idle(control, id).await;
        new
    }

    /// A snapshot that has been taken, or has failed.
    async fn snapshot_of(&self, control: &Control, id: ComputerId) -> (SnapshotId, SnapshotState) {
        let snapshot = control.take_snapshot(id, CreateSnapshot::default()).await.unwrap();
        let events: Vec<_> = control.snapshot_events(snapshot.id).collect().await;
        self.idle(control, id).await;
        (snapshot.id, events.last().unwrap().status)
    }

    async fn restored(&self, control: &Control, id: SnapshotId) -> ComputerId {
        let snapshot = control.snapshot(&self.caller, id, Act::Write).await.unwrap();
        let restored = control.restore(&self.caller, &snapshot, ForkSnapshot::default()).await.unwrap();
        let new = restored.record.id;
        restored.ended().await;
        new
    }

    async fn move_to(
        &self,
        control: &Control,
        id: ComputerId,
        region: &str,
    ) -> Result<ComputerRecord, Failure> {
        control.move_computer(id, MoveComputer { region: Some(region.to_owned()) }).await
    }

    fn launcher_in(&self, region: &RegionName) -> &Arc<Simulated> {
        if *region == far() { &self.far } else { &self.launcher }
    }

    /// Waits until nobody is at work on the computer.
    async fn idle(&self, control: &Control, id: ComputerId) {
        control.wait_until(id, |record| record.intended.is_none()).await.unwrap();
    }

    /// What the status of every computer implies about machines, files and rows.
    async fn check(&self, control: &Control) {
        self.check_events().await;
        assert!(self.store.active_workflows().await.unwrap().is_empty(), "an unfinished workflow is left");
        let mut expected_running = Vec::new();
        let mut known = Vec::new();
        for record in self.store.all_computers().await.unwrap() {
            known.push((record.id, record.region.clone()));
            match status(&record) {
                Status::Running => expected_running.push(record.id),
                Status::Stopped | Status::Error => {}
                other => panic!("{other} with nobody at work: {record:?}"),
            }
            // The row names what the disk lies on.
            if record.provisioned {
                let expected = match record.layer {
                    Some(layer) => self.launcher.layer(layer),
                    None => "/warm/disk".into(),
                };
                let launcher = self.launcher_in(&record.region);
                assert_eq!(launcher.disk_base(record.id), Some(expected), "{record:?}");
            }
        }
        let mut running = [self.launcher.running(), self.far.running()].concat();
        running.sort();
        expected_running.sort();
        assert_eq!(running, expected_running, "machines and statuses do not agree");
        control.collect().await.unwrap();
        for region in [RegionName::local(), far()] {
            let launcher = self.launcher_in(&region);
            for present in launcher.present().await.unwrap() {
                assert!(known.contains(&(present, region.clone())), "files of a computer that is not there");
            }
            launcher.check_storage();
            let mut stored = launcher.stored().await.unwrap();
            let layers = self.store.layers().await.unwrap();
            let mut layers: Vec<_> =
                layers.iter().filter(|layer| layer.region == region).map(|layer| layer.id).collect();
            stored.layers.sort();
            layers.sort();
            assert_eq!(stored.layers, layers, "files and rows of layers do not agree");
            for snapshot in &stored.snapshots {
                let row = self.store.snapshot(*snapshot).await.unwrap();
                let row = row.expect("files of a snapshot that is not there");
                assert_eq!((row.status, &row.region), (SnapshotStatus::Ready, &region), "{row:?}");
            }
        }
    }

    /// The events of every computer tell its whole life, each change once.
    async fn check_events(&self) {
        let log = self.store.events_after(EventId(0), EventsOf::Everybody, u16::MAX).await.unwrap();
        assert!(!log.is_full);
        let mut told: HashMap<ComputerId, String> = HashMap::new();
        for (index, event) in log.events.iter().enumerate() {
            assert_eq!(event.id, EventId(i64::try_from(index).unwrap() + 1), "a hole in the log");
            let Some(computer) = event.scope.computer.filter(|_| event.kind == "status_changed") else {
                continue;
            };
            let status = event.data["status"].as_str().unwrap().to_owned();
            let previous = event.data["previous_status"].as_str().map(str::to_owned);
            assert_ne!(Some(&status), previous.as_ref());
            assert_eq!(told.insert(computer, status), previous, "{event:?}");
        }
        for record in self.store.all_computers().await.unwrap() {
            assert_eq!(told.remove(&record.id).as_deref(), Some(status(&record).as_str()), "{record:?}");
        }
        assert!(told.values().all(|status| status == "destroyed"), "{told:?}");
    }

    /// No computer and no snapshot is left, so nothing else may be.
    async fn check_empty(&self, control: &Control) {
        self.check(control).await;
        assert!(self.store.all_computers().await.unwrap().is_empty());
        for launcher in [&self.launcher, &self.far] {
            let stored = launcher.stored().await.unwrap();
            assert_eq!((stored.layers, stored.snapshots), (Vec::new(), Vec::new()), "files are left");
        }
        assert!(self.store.deleted_snapshots().await.unwrap().is_empty());
    }

    /// Deletes everything there is.
    async fn clear(&self, control: &Control) {
        let filter = SnapshotFilter::default();
        for computer in self.store.all_computers().await.unwrap() {
            control.delete(computer.id).await.unwrap();
        }
        for snapshot in self.store.snapshots(None, &filter).await.unwrap() {
            control.delete_snapshot(snapshot.id).await.unwrap();
        }
        self.check_empty(control).await;
    }
}

#[tokio::test]
async fn a_life_without_faults_and_with_every_step_run_twice() {
    for runs in [1, 2] {
        let world = World::new().await;
        let control = world.control(Arc::new(Fault { at: Mutex::new(None), runs })).await;
        let id = world.create(&control).await;
        assert_eq!(world.status(id).await, Some(Status::Running));
        world.check(&control).await;
        control.stop(id).await.unwrap();
        assert_eq!(world.status(id).await, Some(Status::Stopped));
        world.check(&control).await;
        control.start_computer(id).await.unwrap();
        assert_eq!(world.status(id).await, Some(Status::Running));
        control.restart(id).await.unwrap();
        assert_eq!(world.status(id).await, Some(Status::Running));
        world.check(&control).await;
        // One machine per start, whether steps are repeated or not.
        assert_eq!(world.launcher.starts(), [1, 2, 3], "with {runs} runs");

        let clone = world.clone_of(&control, id).await;
        assert_eq!(
            (world.status(id).await, world.status(clone).await),
            (Some(Status::Running), Some(Status::Running))
        );
        world.check(&control).await;
        // The hidden snapshot is gone; the layer that both lie on is not.
        let stored = world.launcher.stored().await.unwrap();
        assert_eq!((stored.layers.len(), stored.snapshots.len()), (1, 0));

        let (running, state) = world.snapshot_of(&control, id).await;
        assert_eq!(state, SnapshotState::Ready);
        control.stop(id).await.unwrap();
        assert!(world.launcher.has_memory(id));
        let (stopped, state) = world.snapshot_of(&control, id).await;
        assert_eq!((state, world.status(id).await), (SnapshotState::Ready, Some(Status::Stopped)));
        let view = world.store.snapshot(stopped).await.unwrap().unwrap();
        assert_eq!(view.parent, Some(running));
        for snapshot in [running, stopped] {
            let restored = world.restored(&control, snapshot).await;
            assert_eq!(world.status(restored).await, Some(Status::Running));
            world.check(&control).await;
        }
        let request = ResizeComputer { cpu_count: Some(2), memory_mb: Some(8192), size: None };
        let resized = control.resize(id, request).await.unwrap();
        assert_eq!((resized.size, resized.disk_gib, status(&resized)), (Size::Medium, 10, Status::Stopped));
        assert!(!world.launcher.has_memory(id));
        control.start_computer(id).await.unwrap();
        let request = ResizeComputer { size: Some("large".to_owned()), ..ResizeComputer::default() };
        let failure = control.resize(id, request).await.unwrap_err();
        assert_eq!(failure.public.code, ErrorCode::ResourceState);

        control.delete(id).await.unwrap();
        assert_eq!(world.status(id).await, None);
        world.check(&control).await;
        world.clear(&control).await;
    }
}

#[tokio::test]
async fn a_failure_after_any_step_leaks_nothing_and_can_be_mended() {
    for kind in WorkflowKind::ALL.iter().copied() {
        for step in plan(kind).iter().copied() {
            let world = World::new().await;
            let fault = Fault::none();
            let control = world.control(fault.clone()).await;
            if kind == WorkflowKind::Create {
                fault.arm(kind, step);
            }
            let id = world.create(&control).await;
            if matches!(kind, WorkflowKind::Start | WorkflowKind::Resize | WorkflowKind::Move) {
                control.stop(id).await.unwrap();
            }
            fault.arm(kind, step);
            let failed = match kind {
                WorkflowKind::Create => world.status(id).await == Some(Status::Error),
                WorkflowKind::Start => control.start_computer(id).await.is_err(),
                WorkflowKind::Stop => control.stop(id).await.is_err(),
                WorkflowKind::Restart => control.restart(id).await.is_err(),
                WorkflowKind::Delete => control.delete(id).await.is_err(),
                WorkflowKind::Resize => {
                    let request = ResizeComputer { size: Some("xl".to_owned()), ..ResizeComputer::default() };
                    control.resize(id, request).await.is_err()
                }
                WorkflowKind::Move => {
                    let failed = world.move_to(&control, id, "far").await.is_err();
                    // Once the row has named the other region, it is there.
                    let there = world.store.computer(id).await.unwrap().unwrap().region;
                    let expected = if step == Step::CopyFiles { RegionName::local() } else { far() };
                    assert_eq!(there, expected, "{step:?}");
                    assert!(world.launcher_in(&there).has_memory(id), "{step:?}");
                    failed
                }
                WorkflowKind::Capture => {
                    // What is recorded is a fact; before that there is no snapshot.
                    let expected = match step {
                        Step::RecordCapture => SnapshotState::Ready,
                        _ => SnapshotState::Failed,
                    };
                    world.snapshot_of(&control, id).await.1 == expected
                }
            };
            assert!(failed, "{kind:?} succeeded although {step:?} failed");
            fault.at.lock().unwrap().take();

            // Whatever it is now, its status names it, and from there it can be deleted without a rest.
            if kind != WorkflowKind::Delete {
                world.check(&control).await;
                if matches!(world.status(id).await, Some(Status::Stopped | Status::Error)) {
                    control.start_computer(id).await.unwrap();
                }
                assert_eq!(world.status(id).await, Some(Status::Running), "{kind:?} {step:?}");
                world.check(&control).await;
            }
            match control.delete(id).await {
                Ok(()) => {}
                Err(failure) => assert_eq!(failure.public.code, ErrorCode::NotFound, "{kind:?} {step:?}"),
            }
            assert_eq!(world.status(id).await, None);
            world.clear(&control).await;
        }
    }
}

#[tokio::test]
async fn a_clone_or_restore_that_fails_after_any_step_leaks_nothing() {
    let kinds = [WorkflowKind::Capture, WorkflowKind::Create];
    let steps = kinds.iter().flat_map(|kind| plan(*kind).iter().map(|step| (*kind, *step)));
    for (kind, step) in steps {
        let world = World::new().await;
        let fault = Fault::none();
        let control = world.control(fault.clone()).await;
        let id = world.create(&control).await;
        let (snapshot, _) = world.snapshot_of(&control, id).await;

        fault.arm(kind, step);
        let clone = world.clone_of(&control, id).await;
        let survives = step == Step::RecordCapture;
        let expected = if survives { Status::Running } else { Status::Error };
        assert_eq!(world.status(clone).await, Some(expected), "{kind:?} {step:?}");
        assert_eq!(world.status(id).await, Some(Status::Running), "{kind:?} {step:?}");
        world.check(&control).await;
        if kind == WorkflowKind::Create {
            // What it was to continue from is still there.
            control.start_computer(clone).await.unwrap();
            world.check(&control).await;

            fault.arm(kind, step);
            let restored = world.restored(&control, snapshot).await;
            assert_eq!(world.status(restored).await, Some(Status::Error));
            let failure = control.delete_snapshot(snapshot).await.unwrap_err();
            assert_eq!(failure.public.code, ErrorCode::SnapshotInUse);
            control.start_computer(restored).await.unwrap();
            world.check(&control).await;
        } else if !survives {
            let failure = control.start_computer(clone).await.unwrap_err();
            assert!(failure.public.message.contains("made to fail"), "{failure}");
        }
        world.clear(&control).await;
    }
}

#[tokio::test]
async fn a_refused_suspend_leaves_the_computer_running() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    let id = world.create(&control).await;
    world.launcher.refuse("the disk of the host is full: free 512 MiB");
    let failure = control.stop(id).await.unwrap_err();
    assert_eq!(failure.public.code, ErrorCode::ResourceState);
    assert!(failure.public.message.contains("free 512 MiB"), "{failure}");
    assert_eq!(world.status(id).await, Some(Status::Running));
    world.check(&control).await;
    control.stop(id).await.unwrap();
    assert_eq!(world.status(id).await, Some(Status::Stopped));
    world.clear(&control).await;
}

#[tokio::test]
async fn a_refused_capture_fails_the_snapshot_and_the_clone_with_its_reason() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    let id = world.create(&control).await;
    world.launcher.refuse("no room for the memory");
    let (snapshot, state) = world.snapshot_of(&control, id).await;
    assert_eq!(state, SnapshotState::Failed);
    let record = world.store.snapshot(snapshot).await.unwrap().unwrap();
    assert_eq!(record.error.as_deref(), Some("no room for the memory"));
    let failure = control.restore(&world.caller, &record, ForkSnapshot::default()).await.unwrap_err();
    assert_eq!(failure.public.code, ErrorCode::SnapshotNotReady);
    world.launcher.refuse("no room for the memory");
    let clone = world.clone_of(&control, id).await;
    let record = world.store.computer(clone).await.unwrap().unwrap();
    assert_eq!(status(&record), Status::Error);
    assert!(record.failure.unwrap().contains("no room for the memory"));
    assert_eq!(world.status(id).await, Some(Status::Running));
    world.check(&control).await;
    world.clear(&control).await;
}

#[tokio::test]
async fn a_computer_moves_with_its_memory_and_leaves_its_layers() {
    for runs in [1, 2] {
        let world = World::new().await;
        let control = world.control(Arc::new(Fault { at: Mutex::new(None), runs })).await;
        let id = world.create(&control).await;
        let (snapshot, _) = world.snapshot_of(&control, id).await;
        control.stop(id).await.unwrap();
        let begun = world.store.event_bounds().await.unwrap().last;
        let moved = world.move_to(&control, id, "far").await.unwrap();
        assert_eq!((&moved.region, status(&moved), moved.layer), (&far(), Status::Stopped, None));
        assert!(world.far.has_memory(id) && !world.launcher.has_memory(id));
        assert_eq!(world.launcher.disk_base(id), None, "the source is left");
        world.check(&control).await;
        let told = world.store.events_after(begun, EventsOf::Computer(id), 100).await.unwrap().events;
        let kinds: Vec<&str> = told.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds.last(), Some(&"computer.moved"), "{kinds:?}");
        assert_eq!(kinds.iter().filter(|kind| **kind == "computer.moved").count(), 1);
        assert_eq!(told.last().unwrap().data["region"], "far");

        // There it is what it was here.
        control.start_computer(id).await.unwrap();
        assert!(world.far.running().contains(&id) && world.launcher.running().is_empty());
        let (kept, state) = world.snapshot_of(&control, id).await;
        assert_eq!(state, SnapshotState::Ready);
        let clone = world.clone_of(&control, id).await;
        for (computer, region) in [
            (clone, far()),
            (world.restored(&control, snapshot).await, RegionName::local()),
            (world.restored(&control, kept).await, far()),
        ] {
            let record = world.store.computer(computer).await.unwrap().unwrap();
            assert_eq!((status(&record), record.region), (Status::Running, region));
        }
        world.check(&control).await;
        control.stop(id).await.unwrap();
        let back = world.move_to(&control, id, "local").await.unwrap();
        assert_eq!((back.region, back.layer), (RegionName::local(), None));
        control.start_computer(id).await.unwrap();
        world.check(&control).await;
        world.clear(&control).await;
    }
}

#[tokio::test]
async fn a_move_that_cannot_be_leaves_the_computer_where_it_is() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    let id = world.create(&control).await;
    let failure = world.move_to(&control, id, "far").await.unwrap_err();
    assert_eq!(failure.public.code, ErrorCode::ResourceState);
    assert_eq!(failure.public.message, "computer must be stopped to move");
    control.stop(id).await.unwrap();
    for wrong in ["moon", ""] {
        let failure = world.move_to(&control, id, wrong).await.unwrap_err();
        assert_eq!(failure.public.code, ErrorCode::ValidationFailed, "{wrong:?}");
    }
    // Where it is already there is nothing to do.
    assert_eq!(world.move_to(&control, id, "local").await.unwrap().region, RegionName::local());
    world.far.fill(Some("300 MiB of disk are missing"));
    let failure = world.move_to(&control, id, "far").await.unwrap_err();
    assert_eq!(failure.public.code, ErrorCode::NoReadyMachine);
    assert!(failure.public.message.contains("300 MiB"), "{failure}");
    world.far.fill(None);
    world.far.refuse("the copy is not what it is a copy of");
    let failure = world.move_to(&control, id, "far").await.unwrap_err();
    assert_eq!(failure.public.code, ErrorCode::ResourceState);
    let record = world.store.computer(id).await.unwrap().unwrap();
    assert_eq!((record.region, world.launcher.has_memory(id)), (RegionName::local(), true));
    world.check(&control).await;
    control.start_computer(id).await.unwrap();
    world.clear(&control).await;
}

/// The first control plane is cut off while it copies; whatever it has left, the next one begins anew.
#[test]
fn a_copy_that_is_cut_off_is_made_again() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let first = runtime();
    let World { database, launcher, far: other, .. } = first.block_on(World::new());
    other.slow_down(true);
    let id = first.block_on(async {
        let world = World::on(database.clone(), launcher.clone(), other.clone()).await;
        let control = world.control(Arc::new(NoHook)).await;
        let id = world.create(&control).await;
        control.stop(id).await.unwrap();
        let told = control.tenant_events(&world.caller, Some("move_progress"), None, None).await.unwrap();
        let mut told = std::pin::pin!(told);
        let moving = control.clone();
        drop(tokio::spawn(async move {
            moving.move_computer(id, MoveComputer { region: Some("far".to_owned()) }).await
        }));
        assert_eq!(told.next().await.unwrap().kind, "move_progress");
        assert_eq!(other.present().await.unwrap(), [id]);
        id
    });
    first.shutdown_background();
    other.slow_down(false);
    runtime().block_on(async {
        database.forget_servers().await;
        let world = World::on(database, launcher, other).await;
        let control = world.control(Arc::new(NoHook)).await;
        let moved = control.wait_until(id, |record| record.intended.is_none()).await.unwrap();
        assert_eq!((moved.region, world.far.has_memory(id)), (far(), true));
        world.check(&control).await;
        world.clear(&control).await;
    });
}

/// What a move left in another region, and no row knows of, is removed at the start; a region that is no longer there
/// costs its computers nothing but their use.
#[tokio::test]
async fn a_region_that_is_taken_away_can_come_back() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    let (here, there) = (world.create(&control).await, world.create(&control).await);
    for id in [here, there] {
        control.stop(id).await.unwrap();
    }
    world.move_to(&control, there, "far").await.unwrap();
    let (progress, _) = tokio::sync::watch::channel(0);
    let files = world.launcher.source(here).await.unwrap();
    world.far.bring(here, &files, &progress).await.unwrap();
    control.leave().await.unwrap();

    let world = World::on(world.database, world.launcher, world.far).await;
    let alone = Arc::new(OneTemplate { warm: true, asked: Mutex::default() });
    let control = world.control_of(Regions::from(world.launcher.clone()), Arc::new(NoHook), alone).await;
    control.start_computer(here).await.unwrap();
    let failure = control.start_computer(there).await.unwrap_err();
    assert_eq!(failure.public.code, ErrorCode::NoReadyMachine);
    assert!(failure.public.message.contains("--region far="), "{failure}");
    control.leave().await.unwrap();

    let world = World::on(world.database, world.launcher, world.far).await;
    let control = world.control(Arc::new(NoHook)).await;
    assert_eq!(world.far.present().await.unwrap(), [there]);
    control.start_computer(there).await.unwrap();
    world.check(&control).await;
    world.clear(&control).await;
}

#[tokio::test]
async fn ten_clones_at_once() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    let id = world.create(&control).await;
    let clones = (0..10).map(|_| world.clone_of(&control, id));
    for clone in futures_util::future::join_all(clones).await {
        assert_eq!(world.status(clone).await, Some(Status::Running));
    }
    world.idle(&control, id).await;
    world.check(&control).await;
    assert!(world.launcher.stored().await.unwrap().snapshots.is_empty());
    world.clear(&control).await;
}

#[tokio::test]
async fn verbs_wait_for_a_capture() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    let id = world.create(&control).await;
    let clone = control.clone_computer(&world.caller, id, CloneComputer::default()).await.unwrap();
    control.stop(id).await.unwrap();
    clone.ended().await;
    let snapshot = control.take_snapshot(id, CreateSnapshot::default()).await.unwrap();
    control.start_computer(id).await.unwrap();
    let failure = control.clone_computer(&world.caller, id, CloneComputer::default()).await;
    assert!(failure.is_ok());
    control.restart(id).await.unwrap();
    control.take_snapshot(id, CreateSnapshot::default()).await.unwrap();
    control.delete(id).await.unwrap();
    assert_eq!(world.store.snapshot(snapshot.id).await.unwrap().unwrap().status, SnapshotStatus::Ready);
    for computer in world.store.all_computers().await.unwrap() {
        world.idle(&control, computer.id).await;
    }
    world.clear(&control).await;
}

#[tokio::test]
async fn a_clone_needs_a_running_source() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    let id = world.create(&control).await;
    control.stop(id).await.unwrap();
    let failure = control.clone_computer(&world.caller, id, CloneComputer::default()).await.unwrap_err();
    assert_eq!(failure.public.code, ErrorCode::ComputerNotRunning);
    world.clear(&control).await;
}

/// Two snapshots, a clone and a computer restored from the first snapshot, deleted in every order with their
/// source: each deletion frees what nobody needs any more and nothing else.
#[tokio::test]
async fn deleted_in_any_order_everything_is_freed() {
    let orders = permutations(4);
    assert_eq!(orders.len(), 24);
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    for order in orders {
        let source = world.create(&control).await;
        let (snapshot, _) = world.snapshot_of(&control, source).await;
        let clone = world.clone_of(&control, source).await;
        let restored = world.restored(&control, snapshot).await;
        world.check(&control).await;
        for index in &order {
            match index {
                0 => control.delete(source).await.unwrap(),
                1 => control.delete(clone).await.unwrap(),
                2 => control.delete(restored).await.unwrap(),
                _ => drop(control.delete_snapshot(snapshot).await.unwrap()),
            }
            world.check(&control).await;
        }
        world.check_empty(&control).await;
    }
}

fn permutations(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(count - 1);
    let longer = shorter.iter().flat_map(|order| {
        (0..=order.len()).map(move |place| {
            let mut order = order.clone();
            order.insert(place, count - 1);
            order
        })
    });
    longer.collect()
}

#[tokio::test]
async fn long_chains_of_layers_are_merged() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    let id = world.create(&control).await;
    let mut snapshots = Vec::new();
    for _ in 0..14 {
        snapshots.push(world.snapshot_of(&control, id).await.0);
    }
    let kept = snapshots.swap_remove(6);
    assert_eq!(world.store.layers().await.unwrap().len(), 14);
    for snapshot in snapshots {
        control.delete_snapshot(snapshot).await.unwrap();
    }
    while control.merge_one().await.unwrap() {}
    world.check(&control).await;
    assert_eq!(world.store.layers().await.unwrap().len(), 8);
    // What lies on them is what it was.
    let restored = world.restored(&control, kept).await;
    assert_eq!(world.status(restored).await, Some(Status::Running));
    control.stop(id).await.unwrap();
    control.start_computer(id).await.unwrap();
    world.check(&control).await;
    world.clear(&control).await;
}

#[tokio::test]
async fn snapshots_expire_unless_they_are_kept_or_named() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    let id = world.create(&control).await;
    let take = |keep| {
        let request =
            CreateSnapshot { retention_seconds: Some(1), keep: Some(keep), ..CreateSnapshot::default() };
        control.take_snapshot(id, request)
    };
    let (short, kept, named) =
        (take(false).await.unwrap(), take(true).await.unwrap(), take(false).await.unwrap());
    let ended: Vec<_> = control.snapshot_events(named.id).collect().await;
    assert_eq!(ended.last().unwrap().status, SnapshotState::Ready);
    let name = |snapshot: SnapshotId, name: &str| NameSnapshot {
        name: Some(name.to_owned()),
        snapshot_id: Some(snapshot.to_string()),
        ..NameSnapshot::default()
    };
    control.name_snapshot(&world.caller, name(named.id, "base")).await.unwrap();
    let failure = control.name_snapshot(&world.caller, name(kept.id, "base")).await.unwrap_err();
    assert_eq!(failure.public.code, ErrorCode::NameTaken);
    let failure = control.name_snapshot(&world.caller, name(named.id, "other")).await.unwrap_err();
    assert_eq!(failure.public.code, ErrorCode::SnapshotAlreadyNamed);
    let gone = async {
        while world.store.snapshot(short.id).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("it did not expire");
    for stays in [kept.id, named.id] {
        assert!(world.store.snapshot(stays).await.unwrap().is_some());
    }
    let failure = control.delete_snapshot(named.id).await.unwrap_err();
    assert_eq!(failure.public.code, ErrorCode::SnapshotInUse);
    let record = control.named_snapshot(&world.caller, "base", Act::Read).await.unwrap();
    control.release_name(&record).await.unwrap();
    // Its time is over already.
    let gone = async {
        while world.store.snapshot(named.id).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("it did not expire");
    world.clear(&control).await;
}

#[tokio::test]
async fn a_snapshot_that_is_being_restored_cannot_be_deleted() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    let id = world.create(&control).await;
    let (snapshot, _) = world.snapshot_of(&control, id).await;
    world.launcher.set_boot(Boot::Hangs);
    let record = control.snapshot(&world.caller, snapshot, Act::Write).await.unwrap();
    let restored = control.restore(&world.caller, &record, ForkSnapshot::default()).await.unwrap();
    let record = control.snapshot(&world.caller, snapshot, Act::Write).await.unwrap();
    assert_eq!(control.snapshot_view(&record).status, SnapshotState::Restoring);
    let failure = control.delete_snapshot(snapshot).await.unwrap_err();
    assert_eq!(failure.public.code, ErrorCode::SnapshotInUse);
    let kinds = failure.public.details.unwrap()["dependents"][0]["kind"].clone();
    assert_eq!(kinds, "restore_in_progress");
    control.delete(restored.record.id).await.unwrap();
    let record = control.snapshot(&world.caller, snapshot, Act::Write).await.unwrap();
    assert_eq!(control.snapshot_view(&record).status, SnapshotState::Ready);
    // Somebody else does not see it at all.
    let stranger = Caller { tenant: roost_api::TenantId::new(), ..world.caller.clone() };
    let failure = control.snapshot(&stranger, snapshot, Act::Write).await.unwrap_err();
    assert_eq!(failure.public.code, ErrorCode::NotFound);
    control.delete_snapshot(snapshot).await.unwrap();
    world.clear(&control).await;
}

#[tokio::test]
async fn a_full_host_says_so_before_it_promises_anything() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    let id = world.create(&control).await;
    let (snapshot, _) = world.snapshot_of(&control, id).await;
    let record = control.snapshot(&world.caller, snapshot, Act::Write).await.unwrap();
    let other = world.clone_of(&control, id).await;
    control.stop(other).await.unwrap();
    world.launcher.fill(Some("300 MiB of memory are missing"));
    let request = CreateComputer {
        name: Some("box".to_owned()),
        template_type: Some("miosa-desktop".to_owned()),
        ..CreateComputer::default()
    };
    let refusals = [
        control.create(&world.caller, request).await.unwrap_err(),
        control.clone_computer(&world.caller, id, CloneComputer::default()).await.unwrap_err(),
        control.restore(&world.caller, &record, ForkSnapshot::default()).await.unwrap_err(),
        control.start_computer(other).await.unwrap_err(),
    ];
    for failure in refusals {
        assert_eq!(failure.public.code, ErrorCode::NoReadyMachine);
        assert!(failure.public.message.contains("300 MiB"), "{failure}");
    }
    assert_eq!(world.store.all_computers().await.unwrap().len(), 2);
    assert_eq!(world.status(other).await, Some(Status::Stopped));
    world.check(&control).await;
    // The machine that a restart has stopped is not started again without room.
    let failure = control.restart(id).await.unwrap_err();
    assert_eq!(failure.public.code, ErrorCode::NoReadyMachine);
    world.launcher.fill(None);
    control.start_computer(id).await.unwrap();
    world.clear(&control).await;
}

#[tokio::test]
async fn the_first_computer_of_a_size_has_its_template_warmed() {
    let world = World::new().await;
    let templates = Arc::new(OneTemplate { warm: false, asked: Mutex::default() });
    let control = world.control_with(Arc::new(NoHook), templates.clone()).await;
    let id = world.create(&control).await;
    world.create(&control).await;
    assert_eq!(world.launcher.disk_base(id), Some("/base".into()));
    let built = async {
        while templates.asked.lock().unwrap().is_empty() || world.launcher.present().await.unwrap().len() > 2
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), built).await.expect("no template was built");
    assert_eq!(*templates.asked.lock().unwrap(), [Size::Small]);
    assert_eq!(world.launcher.running().len(), 2);
}

#[tokio::test]
async fn a_boot_that_fails_says_why_and_a_start_tries_again() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    world.launcher.set_boot(Boot::Fails);
    let id = world.create(&control).await;
    let record = world.store.computer(id).await.unwrap().unwrap();
    assert_eq!((status(&record), record.failure.as_deref()), (Status::Error, Some("it was made to fail")));
    let failure = control.start_computer(id).await.unwrap_err();
    assert!(failure.public.message.contains("it was made to fail"), "{failure}");
    world.launcher.set_boot(Boot::Succeeds);
    assert_eq!(status(&control.start_computer(id).await.unwrap()), Status::Running);
    world.check(&control).await;
}

#[tokio::test]
async fn a_machine_that_ends_by_itself_changes_the_status() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    let id = world.create(&control).await;
    world
        .launcher
        .report(id, Report::Failed { reason: "QEMU died".to_owned(), console: vec!["last".to_owned()] });
    let record = control.wait_until(id, |record| status(record) == Status::Error).await.unwrap();
    assert_eq!(
        (record.failure.as_deref(), record.failure_console.as_slice()),
        (Some("QEMU died"), &["last".to_owned()][..])
    );
    control.start_computer(id).await.unwrap();
    // It turns itself off: that is no error.
    world.launcher.report(id, Report::Stopped);
    control.wait_until(id, |record| status(record) == Status::Stopped).await.unwrap();
    control.start_computer(id).await.unwrap();
    world.launcher.report(id, Report::Vanished);
    let record = control.wait_until(id, |record| status(record) == Status::Error).await.unwrap();
    assert!(record.failure.is_some_and(|reason| reason.contains("start the computer again")));
}

#[tokio::test]
async fn a_delete_does_not_wait_for_a_boot_that_hangs() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    world.launcher.set_boot(Boot::Hangs);
    let request = CreateComputer {
        name: Some("stuck".to_owned()),
        template_type: Some("miosa-desktop".to_owned()),
        ..CreateComputer::default()
    };
    let created = control.create(&world.caller, request).await.unwrap();
    let id = created.record.id;
    control.wait_until(id, |record| record.observed == roost_store::Observed::Booting).await.unwrap();
    let deleted = tokio::time::timeout(Duration::from_secs(10), control.delete(id)).await;
    deleted.expect("the delete waited").unwrap();
    created.ended().await;
    assert_eq!(world.status(id).await, None);
    world.check(&control).await;
}

/// Who waits for what a delete ends is told so: nothing of the server has failed.
#[tokio::test]
async fn a_delete_ends_a_move_and_a_start() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    let (moving, starting) = (world.create(&control).await, world.create(&control).await);
    for id in [moving, starting] {
        control.stop(id).await.unwrap();
    }
    world.far.slow_down(true);
    let told = control.tenant_events(&world.caller, Some("move_progress"), None, None).await.unwrap();
    let mut told = std::pin::pin!(told);
    let moved = tokio::spawn({
        let control = control.clone();
        async move { control.move_computer(moving, MoveComputer { region: Some("far".to_owned()) }).await }
    });
    assert_eq!(told.next().await.unwrap().kind, "move_progress");
    assert_eq!(world.far.present().await.unwrap(), [moving]);

    world.launcher.set_boot(Boot::Hangs);
    let started = tokio::spawn({
        let control = control.clone();
        async move { control.start_computer(starting).await }
    });
    control.wait_until(starting, |record| record.observed == roost_store::Observed::Booting).await.unwrap();

    for (id, waiting) in [(moving, moved), (starting, started)] {
        let deleted = tokio::time::timeout(Duration::from_secs(10), control.delete(id)).await;
        deleted.expect("the delete waited").unwrap();
        let failure = waiting.await.unwrap().unwrap_err();
        assert_eq!(failure.public.code, ErrorCode::InvalidState, "{failure}");
        assert!(failure.public.message.contains("is being deleted"), "{failure}");
    }
    assert!(world.far.present().await.unwrap().is_empty(), "the copy is left");
    world.check_empty(&control).await;
}

#[tokio::test]
async fn verbs_at_once_are_serialised_by_the_database() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    let id = world.create(&control).await;
    let verbs = (0..12).map(|n| {
        let control = control.clone();
        tokio::spawn(async move {
            match n % 3 {
                0 => control.stop(id).await,
                1 => control.start_computer(id).await,
                _ => control.restart(id).await,
            }
        })
    });
    for verb in verbs.collect::<Vec<_>>() {
        if let Err(failure) = verb.await.unwrap() {
            assert_eq!(failure.public.code, ErrorCode::InvalidState, "{failure}");
        }
    }
    world.check(&control).await;
    let deletes = [control.delete(id), control.delete(id), control.delete(id)];
    for result in futures_util::future::join_all(deletes).await {
        if let Err(failure) = result {
            assert_eq!(failure.public.code, ErrorCode::NotFound);
        }
    }
    assert_eq!(world.status(id).await, None);
    world.check(&control).await;
}

#[tokio::test]
async fn a_database_that_does_not_answer_is_told() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    control.healthy().await.unwrap();
    world.store.close().await;
    let failure = control.healthy().await.unwrap_err();
    assert_eq!(failure.public.code, ErrorCode::Unavailable);
    assert_eq!(failure.public.code.status(), 503);
}

#[test]
fn another_control_plane_finishes_what_one_left() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let first = runtime();
    let database = first.block_on(async { Arc::new(TestDatabase::new().await) });
    let (launcher, far) = (Arc::new(Simulated::default()), Arc::new(Simulated::default()));
    let world = || World::on(database.clone(), launcher.clone(), far.clone());
    launcher.set_boot(Boot::Hangs);
    let id = first.block_on(async {
        let world = world().await;
        let control = world.control(Arc::new(NoHook)).await;
        let request = CreateComputer {
            name: Some("left".to_owned()),
            template_type: Some("miosa-desktop".to_owned()),
            ..CreateComputer::default()
        };
        let id = control.create(&world.caller, request).await.unwrap().record.id;
        control.wait_until(id, |record| record.observed == roost_store::Observed::Booting).await.unwrap();
        id
    });
    // Every task of the first control plane ends here, in the middle of its workflow.
    first.shutdown_background();

    runtime().block_on(async {
        database.forget_servers().await;
        let world = world().await;
        assert_eq!(world.status(id).await, Some(Status::Provisioning));
        let control = world.control(Arc::new(NoHook)).await;
        launcher.report(id, Report::Running);
        control.wait_until(id, |record| status(record) == Status::Running).await.unwrap();
        // The machine that was booting was taken over, not started again.
        assert_eq!(launcher.starts(), [1]);
        world.idle(&control, id).await;
        world.check(&control).await;
    });
}

/// A control plane stands still after each step of each workflow and is replaced by another one.
#[test]
fn another_control_plane_goes_on_after_any_step() {
    for kind in WorkflowKind::ALL.iter().copied() {
        for step in plan(kind).iter().copied() {
            interrupted(kind, step);
        }
    }
}

fn interrupted(kind: WorkflowKind, step: Step) {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (sender, reached) = std::sync::mpsc::channel();
    let hook = Arc::new(Stall { at: (kind, step), reached: Mutex::new(sender) });
    let first = runtime();
    let World { database, launcher, far: other, .. } = first.block_on(World::new());
    let (old, old_other, old_database) = (launcher.clone(), other.clone(), database.clone());
    drop(first.spawn(async move {
        let world = World::on(old_database, old, old_other).await;
        let control = world.control(hook).await;
        let id = world.create(&control).await;
        match kind {
            WorkflowKind::Create => {}
            WorkflowKind::Start => {
                control.stop(id).await.unwrap();
                control.start_computer(id).await.unwrap();
            }
            WorkflowKind::Stop => drop(control.stop(id).await),
            WorkflowKind::Restart => drop(control.restart(id).await),
            WorkflowKind::Delete => drop(control.delete(id).await),
            WorkflowKind::Capture => drop(world.clone_of(&control, id).await),
            WorkflowKind::Resize => {
                control.stop(id).await.unwrap();
                let request = ResizeComputer { size: Some("large".to_owned()), ..ResizeComputer::default() };
                drop(control.resize(id, request).await);
            }
            WorkflowKind::Move => {
                world.snapshot_of(&control, id).await;
                control.stop(id).await.unwrap();
                drop(world.move_to(&control, id, "far").await);
            }
        }
    }));
    reached.recv_timeout(Duration::from_secs(60)).expect("the step was not reached");
    first.shutdown_background();

    runtime().block_on(async {
        database.forget_servers().await;
        let world = World::on(database, launcher, other).await;
        let control = world.control(Arc::new(NoHook)).await;
        let computers = world.store.all_computers().await.unwrap();
        for record in &computers {
            let idle = control.wait_until(record.id, |record| record.intended.is_none()).await;
            let expected = match kind {
                WorkflowKind::Create
                | WorkflowKind::Start
                | WorkflowKind::Restart
                | WorkflowKind::Capture => Some(Status::Running),
                WorkflowKind::Stop | WorkflowKind::Resize | WorkflowKind::Move => Some(Status::Stopped),
                WorkflowKind::Delete => None,
            };
            if let Ok(record) = idle {
                assert_eq!(Some(status(&record)), expected, "{kind:?} {step:?}");
            }
        }
        let left = if kind == WorkflowKind::Capture { 2 } else { usize::from(kind != WorkflowKind::Delete) };
        while !world.store.active_workflows().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let computers = world.store.all_computers().await.unwrap();
        assert_eq!(computers.len(), left, "{kind:?} {step:?}");
        if kind == WorkflowKind::Resize {
            assert_eq!(computers.first().unwrap().size, Size::Large);
        }
        if kind == WorkflowKind::Move {
            let moved = computers.first().unwrap();
            assert_eq!((&moved.region, moved.layer), (&far(), None), "{step:?}");
            assert!(world.far.has_memory(moved.id), "{step:?}");
        }
        world.check(&control).await;
        world.clear(&control).await;
    });
}

#[test]
fn after_a_restart_of_the_host_only_what_is_always_on_runs() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let first = runtime();
    let world = first.block_on(World::new());
    let (on, seen, off, kept) = first.block_on(async {
        let control = world.control(Arc::new(NoHook)).await;
        let seen = world.create(&control).await;
        let (on, off, kept) =
            (world.create(&control).await, world.create(&control).await, world.create(&control).await);
        let request = UpdateComputer { always_on: Some(true), ..UpdateComputer::default() };
        assert!(control.update(on, request.clone()).await.unwrap().always_on);
        control.update(seen, request).await.unwrap();
        control.stop(kept).await.unwrap();
        // Its process ends before the server does.
        world.launcher.report(seen, Report::Vanished);
        control.wait_until(seen, |record| status(record) == Status::Error).await.unwrap();
        (on, seen, off, kept)
    });
    first.shutdown_background();
    let World { database, launcher, far, .. } = world;
    launcher.report(on, Report::Vanished);
    launcher.report(off, Report::Vanished);
    runtime().block_on(async {
        database.forget_servers().await;
        let world = World::on(database, launcher, far).await;
        let control = world.control(Arc::new(NoHook)).await;
        assert_eq!(world.status(off).await, Some(Status::Stopped));
        for id in [on, seen] {
            control.wait_until(id, |record| status(record) == Status::Running).await.unwrap();
        }
        assert!(world.launcher.has_memory(kept));
        control.start_computer(kept).await.unwrap();
        world.check(&control).await;
        world.clear(&control).await;
    });
}

#[tokio::test]
async fn files_that_no_row_knows_are_removed_at_the_start() {
    let world = World::new().await;
    let control = world.control(Arc::new(NoHook)).await;
    let id = world.create(&control).await;
    let capture = roost_launch::Capture { snapshot: SnapshotId::new(), layer: roost_api::LayerId::new() };
    world.launcher.capture(id, &capture, roost_launch::Keep::Lasting).await.unwrap();
    // Its computer goes without the row of the layer ever being written.
    control.delete(id).await.unwrap();
    assert_eq!(world.launcher.stored().await.unwrap().layers, [capture.layer]);
    control.leave().await.unwrap();
    let world = World::on(world.database, world.launcher, world.far).await;
    let control = world.control(Arc::new(NoHook)).await;
    world.check_empty(&control).await;
}
