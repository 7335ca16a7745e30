//! The workflows against simulated machines: fail after each step and look for leaks; run each step twice
//! and expect the same; cut the control plane off and let another one finish.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use camino::Utf8PathBuf;
use roost_api::{ComputerId, CreateComputer, ErrorCode, Status};
use roost_control::status::status;
use roost_control::{
    Caller, Config, Control, NoHook, PublicUrls, Step, StepHook, StreamKey, TemplateError, TemplateFiles,
    Templates, plan,
};
use roost_launch::simulated::{Boot, Simulated};
use roost_launch::{Launcher, Report};
use roost_machine_proto::{Accelerator, NetworkSpec};
use roost_store::{Store, WorkflowKind};

#[derive(Debug)]
struct OneTemplate;

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

struct World {
    directory: tempfile::TempDir,
    store: Store,
    launcher: Arc<Simulated>,
    caller: Caller,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(directory.path().join("roost.db")).unwrap();
        let store = Store::open(&path).await.unwrap();
        let home = store.home().await.unwrap();
        let caller = Caller { key: roost_api::ApiKeyId::new(), tenant: home.tenant, user: home.user };
        Self { directory, store, launcher: Arc::new(Simulated::default()), caller }
    }

    async fn control(&self, hook: Arc<dyn StepHook>) -> Control {
        let config = Config {
            urls: PublicUrls {
                origin: "http://127.0.0.1:1".to_owned(),
                scheme: "http".to_owned(),
                domain: "localhost:1".to_owned(),
            },
            accelerator: Accelerator::Tcg,
            network: NetworkSpec::default(),
            stream_key: StreamKey::from_bytes([1; 32]),
        };
        Control::start(self.store.clone(), self.launcher.clone(), Arc::new(OneTemplate), config, hook)
            .await
            .unwrap()
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

    /// What the status of every computer implies about machines, files and rows.
    async fn check(&self) {
        assert!(self.store.active_workflows().await.unwrap().is_empty(), "an unfinished workflow is left");
        let mut expected_running = Vec::new();
        let mut known = Vec::new();
        for record in self.store.all_computers().await.unwrap() {
            known.push(record.id);
            match status(&record) {
                Status::Running => expected_running.push(record.id),
                Status::Stopped | Status::Error => {}
                other => panic!("{other} with nobody at work: {record:?}"),
            }
        }
        let mut running = self.launcher.running();
        running.sort();
        expected_running.sort();
        assert_eq!(running, expected_running, "machines and statuses do not agree");
        for present in self.launcher.present().await.unwrap() {
            assert!(known.contains(&present), "files of a computer that does not exist");
        }
    }
}

#[tokio::test]
async fn a_life_without_faults_and_with_every_step_run_twice() {
    for runs in [1, 2] {
        let world = World::new().await;
        let control = world.control(Arc::new(Fault { at: Mutex::new(None), runs })).await;
        let id = world.create(&control).await;
        assert_eq!(world.status(id).await, Some(Status::Running));
        world.check().await;
        control.stop(id).await.unwrap();
        assert_eq!(world.status(id).await, Some(Status::Stopped));
        world.check().await;
        control.start_computer(id).await.unwrap();
        assert_eq!(world.status(id).await, Some(Status::Running));
        control.restart(id).await.unwrap();
        assert_eq!(world.status(id).await, Some(Status::Running));
        world.check().await;
        // One machine per start, whether steps are repeated or not.
        assert_eq!(world.launcher.starts(), [1, 2, 3], "with {runs} runs");
        control.delete(id).await.unwrap();
        assert_eq!(world.status(id).await, None);
        world.check().await;
        assert!(world.directory.path().exists());
    }
}

#[tokio::test]
async fn a_failure_after_any_step_leaks_nothing_and_can_be_mended() {
    let kinds = [
        WorkflowKind::Create,
        WorkflowKind::Start,
        WorkflowKind::Stop,
        WorkflowKind::Restart,
        WorkflowKind::Delete,
    ];
    for kind in kinds {
        for step in plan(kind).iter().copied() {
            let world = World::new().await;
            let fault = Fault::none();
            let control = world.control(fault.clone()).await;
            if kind == WorkflowKind::Create {
                fault.arm(kind, step);
            }
            let id = world.create(&control).await;
            if kind == WorkflowKind::Start {
                control.stop(id).await.unwrap();
            }
            fault.arm(kind, step);
            let failed = match kind {
                WorkflowKind::Create => world.status(id).await == Some(Status::Error),
                WorkflowKind::Start => control.start_computer(id).await.is_err(),
                WorkflowKind::Stop => control.stop(id).await.is_err(),
                WorkflowKind::Restart => control.restart(id).await.is_err(),
                WorkflowKind::Delete => control.delete(id).await.is_err(),
            };
            assert!(failed, "{kind:?} succeeded although {step:?} failed");
            fault.at.lock().unwrap().take();

            // Whatever it is now, its status names it, and from there it can be deleted without a rest.
            if kind != WorkflowKind::Delete {
                world.check().await;
                if matches!(world.status(id).await, Some(Status::Stopped | Status::Error)) {
                    control.start_computer(id).await.unwrap();
                    assert_eq!(world.status(id).await, Some(Status::Running), "{kind:?} {step:?}");
                    world.check().await;
                }
            }
            match control.delete(id).await {
                Ok(()) => {}
                Err(failure) => assert_eq!(failure.public.code, ErrorCode::NotFound, "{kind:?} {step:?}"),
            }
            assert_eq!(world.status(id).await, None);
            world.check().await;
        }
    }
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
    world.check().await;
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
    world.check().await;
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
    world.check().await;
    let deletes = [control.delete(id), control.delete(id), control.delete(id)];
    for result in futures_util::future::join_all(deletes).await {
        if let Err(failure) = result {
            assert_eq!(failure.public.code, ErrorCode::NotFound);
        }
    }
    assert_eq!(world.status(id).await, None);
    world.check().await;
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
    let directory = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::try_from(directory.path().join("roost.db")).unwrap();
    let launcher = Arc::new(Simulated::default());
    let world = |directory| {
        let (launcher, path) = (launcher.clone(), path.clone());
        async move {
            let store = Store::open(&path).await.unwrap();
            let home = store.home().await.unwrap();
            let caller = Caller { key: roost_api::ApiKeyId::new(), tenant: home.tenant, user: home.user };
            World { directory, store, launcher, caller }
        }
    };
    launcher.set_boot(Boot::Hangs);
    let id = first.block_on(async {
        let world = world(tempfile::tempdir().unwrap()).await;
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
        let world = world(directory).await;
        assert_eq!(world.status(id).await, Some(Status::Provisioning));
        let control = world.control(Arc::new(NoHook)).await;
        launcher.report(id, Report::Running);
        control.wait_until(id, |record| status(record) == Status::Running).await.unwrap();
        // The machine that was booting was taken over, not started again.
        assert_eq!(launcher.starts(), [1]);
        world.check().await;
    });
}
