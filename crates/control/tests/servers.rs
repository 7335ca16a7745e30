//! Two control planes on one PostgreSQL database and the same machines: nothing runs twice, who waits at one is woken
//! by the other, and one goes on with what the other left. On SQLite there is nothing to test: it has one server.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod silent;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use camino::Utf8PathBuf;
use futures_util::StreamExt;
use roost_api::{ComputerId, CreateComputer, ErrorCode, Size, Status};
use roost_control::status::status;
use roost_control::{
    Caller, Config, Control, CreditConfig, EventRetention, FileConfig, KeyForm, PublicUrls, SealKey, Sharing,
    Step, StepHook, StreamKey, TemplateError, TemplateFiles, Templates, WarmFiles,
};
use roost_launch::simulated::{Boot, Simulated};
use roost_launch::{Launcher, Report};
use roost_machine_proto::{Accelerator, NetworkSpec};
use roost_store::testing::TestDatabase;
use roost_store::{KeyActor, Observed, WorkflowKind};
use tokio::runtime::Runtime;

/// Longer than any test: nobody is given up for being slow.
const FOR_EVER: Duration = Duration::from_secs(3600);

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

    fn warm(&self, _name: &str, _digest: &str, _size: Size) -> Result<Option<WarmFiles>, TemplateError> {
        Ok(Some(WarmFiles { disk: "/warm/disk".into(), memory: "/warm/memory".into() }))
    }

    fn warm_target(&self, _name: &str, _digest: &str, _size: Size) -> Result<Utf8PathBuf, TemplateError> {
        Ok("/warm".into())
    }
}

/// How often each step was run, at all servers.
#[derive(Debug, Default)]
struct Count(Mutex<HashMap<(WorkflowKind, Step), usize>>);

impl StepHook for Count {
    fn after(&self, kind: WorkflowKind, step: Step) -> Result<(), String> {
        *self.0.lock().unwrap().entry((kind, step)).or_default() += 1;
        Ok(())
    }

    fn runs(&self) -> usize {
        1
    }
}

/// What the servers have in common.
struct Host {
    database: TestDatabase,
    launcher: Arc<Simulated>,
    count: Arc<Count>,
    caller: Caller,
}

impl Host {
    /// `None` where servers cannot share.
    async fn new() -> Option<Self> {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        if !store.is_shared() {
            return None;
        }
        let home = store.home().await.unwrap();
        store.insert_key(&home.new_key("hash"), &KeyActor::default()).await.unwrap().unwrap();
        let caller = store.caller_by_key_hash("hash").await.unwrap().unwrap();
        let (launcher, count) = (Arc::default(), Arc::default());
        Some(Self { database, launcher, count, caller })
    }

    async fn server(&self, lease: Duration, locks: Option<Utf8PathBuf>) -> Control {
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
            sharing: Sharing { lease, locks },
            files: FileConfig::default(),
        };
        let (launcher, count) = (self.launcher.clone(), self.count.clone());
        let store = self.database.store().await;
        Control::start(store, launcher, Arc::new(OneTemplate), config, count).await.unwrap()
    }

    /// Begins to make a computer.
    async fn begin(&self, server: &Control) -> ComputerId {
        let request = CreateComputer {
            name: Some("box".to_owned()),
            template_type: Some("miosa-desktop".to_owned()),
            ..CreateComputer::default()
        };
        server.create(&self.caller, request).await.unwrap().record.id
    }

    fn steps(&self) -> HashMap<(WorkflowKind, Step), usize> {
        self.count.0.lock().unwrap().clone()
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn until(server: &Control, id: ComputerId, wanted: Status) {
    server.wait_until(id, |record| status(record) == wanted && record.intended.is_none()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn through_any_server_and_every_step_once() {
    const COMPUTERS: usize = 50;
    let Some(host) = Host::new().await else { return };
    let host = Arc::new(host);
    let (a, b) = (host.server(FOR_EVER, None).await, host.server(FOR_EVER, None).await);
    let mut lives = tokio::task::JoinSet::new();
    for number in 0..COMPUTERS {
        let host = host.clone();
        let (one, other) = if number % 2 == 0 { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) };
        lives.spawn(async move {
            let id = host.begin(&one).await;
            until(&other, id, Status::Running).await;
            // Both want the same: one does it, the other is told that it is done or being done.
            let (first, second) = tokio::join!(one.stop(id), other.stop(id));
            assert!(first.is_ok() || second.is_ok());
            until(&one, id, Status::Stopped).await;
            assert_eq!(status(&other.start_computer(id).await.unwrap()), Status::Running);
            until(&one, id, Status::Running).await;
            let (first, second) = tokio::join!(one.delete(id), other.delete(id));
            for deleted in [&first, &second] {
                let code = deleted.as_ref().err().map(|failure| failure.public.code);
                assert!(matches!(code, None | Some(ErrorCode::NotFound)), "{code:?}");
            }
            assert!(first.is_ok() || second.is_ok());
        });
    }
    lives.join_all().await;
    let steps = host.steps();
    for kind in [WorkflowKind::Create, WorkflowKind::Start, WorkflowKind::Stop, WorkflowKind::Delete] {
        for step in roost_control::plan(kind) {
            assert_eq!(steps.get(&(kind, *step)), Some(&COMPUTERS), "{kind:?} {step:?}");
        }
    }
    assert_eq!(host.launcher.starts().len(), 2 * COMPUTERS);
    assert!(host.launcher.present().await.unwrap().is_empty());
    let store = host.database.store().await;
    assert!(store.active_workflows().await.unwrap().is_empty());
    assert!(store.all_computers().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_at_one_is_woken_by_the_other() {
    let Some(host) = Host::new().await else { return };
    let (a, b) = (host.server(FOR_EVER, None).await, host.server(FOR_EVER, None).await);
    let mut events = Box::pin(b.tenant_events(&host.caller, None, None, None).await.unwrap());
    host.launcher.set_boot(Boot::Hangs);
    let id = host.begin(&a).await;
    assert_eq!(events.next().await.unwrap().kind, "computer.created");
    b.wait_until(id, |record| record.observed == Observed::Booting).await.unwrap();
    // What A is starting is waited for at B.
    let starting = tokio::spawn({
        let b = b.clone();
        async move { b.start_computer(id).await }
    });
    host.launcher.report(id, Report::Running);
    assert_eq!(status(&starting.await.unwrap().unwrap()), Status::Running);

    let stopped = tokio::spawn({
        let a = a.clone();
        async move { until(&a, id, Status::Stopped).await }
    });
    b.stop(id).await.unwrap();
    stopped.await.unwrap();

    // A boot that hangs at A is given up for a delete at B.
    let hanging = host.begin(&a).await;
    b.wait_until(hanging, |record| record.observed == Observed::Booting).await.unwrap();
    b.delete(hanging).await.unwrap();
    assert_eq!(a.get(&host.caller, hanging).await.unwrap_err().public.code, ErrorCode::NotFound);
}

/// The failure that one server's workflow ended with is the answer of the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_elsewhere_says_why() {
    let Some(host) = Host::new().await else { return };
    let (a, b) = (host.server(FOR_EVER, None).await, host.server(FOR_EVER, None).await);
    host.launcher.set_boot(Boot::Hangs);
    let id = host.begin(&a).await;
    b.wait_until(id, |record| record.observed == Observed::Booting).await.unwrap();
    let (mut starting, b) = (Box::pin(b.start_computer(id)), &b);
    // It waits before the machine fails.
    assert!(futures_util::poll!(&mut starting).is_pending());
    b.wait_until(id, |record| record.intended == Some(WorkflowKind::Create)).await.unwrap();
    host.launcher.report(id, Report::Failed { reason: "no luck".to_owned(), console: Vec::new() });
    // Looked at before or after its end: either the failure, or a computer that failed.
    match starting.await {
        Err(failure) => {
            assert_eq!(failure.public.code, ErrorCode::StartFailed);
            assert!(failure.public.message.contains("no luck"), "{failure}");
        }
        Ok(record) => panic!("it runs: {record:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_one_stream_at_any_server() {
    let Some(host) = Host::new().await else { return };
    let (a, b) = (host.server(FOR_EVER, None).await, host.server(FOR_EVER, None).await);
    let ticket = a.sse_ticket(&host.caller).await.unwrap().ticket;
    let (first, second) = tokio::join!(a.redeem(&ticket), b.redeem(&ticket));
    assert_eq!([first.is_ok(), second.is_ok()].iter().filter(|is_ok| **is_ok).count(), 1);
    let failure = a.redeem(&ticket).await.unwrap_err();
    assert_eq!(failure.public.code, ErrorCode::InvalidToken);
    let ticket = a.sse_ticket(&host.caller).await.unwrap().ticket;
    assert_eq!(b.redeem(&ticket).await.unwrap().key, host.caller.key);
}

/// What ten hanging boots at a server that goes away in some way come to at another one.
fn goes_on(lease: Duration, locks: Option<Utf8PathBuf>, go: impl FnOnce(Runtime, Control), late: bool) {
    let second = runtime();
    let Some(host) = second.block_on(Host::new()) else { return };
    let first = runtime();
    let a = first.block_on(host.server(lease, locks.clone()));
    let early = (!late).then(|| second.block_on(host.server(lease, locks.clone())));
    host.launcher.set_boot(Boot::Hangs);
    let ids: Vec<ComputerId> = first.block_on(async {
        let mut ids = Vec::new();
        for _ in 0..10 {
            ids.push(host.begin(&a).await);
        }
        for id in &ids {
            a.wait_until(*id, |record| record.observed == Observed::Booting).await.unwrap();
        }
        ids
    });
    go(first, a);
    second.block_on(async {
        let b = match early {
            Some(b) => b,
            None => host.server(lease, locks).await,
        };
        for id in ids {
            host.launcher.report(id, Report::Running);
            until(&b, id, Status::Running).await;
            // Somebody follows its machine still.
            host.launcher.report(id, Report::Stopped);
            until(&b, id, Status::Stopped).await;
        }
        // The machines were taken over, not started again.
        assert_eq!(host.launcher.starts().len(), 10);
        assert_eq!(host.steps().get(&(WorkflowKind::Create, Step::AwaitRunning)), Some(&10));
    });
}

#[test]
fn a_server_that_leaves_is_followed_at_once() {
    let leave = |first: Runtime, a: Control| {
        first.block_on(a.leave()).unwrap();
    };
    goes_on(FOR_EVER, None, leave, false);
}

#[test]
fn a_server_that_falls_silent_is_followed_after_its_lease() {
    let kill = |first: Runtime, a: Control| {
        first.shutdown_background();
        drop(a);
    };
    goes_on(Duration::from_secs(1), None, kill, false);
}

#[test]
fn a_server_whose_process_ended_is_followed_at_the_start_of_the_next() {
    let kill = |first: Runtime, a: Control| {
        drop(a);
        first.shutdown_timeout(Duration::from_secs(60));
    };
    let directory = tempfile::tempdir().unwrap();
    let locks = Utf8PathBuf::try_from(directory.path().join("servers")).unwrap();
    goes_on(FOR_EVER, Some(locks.clone()), kill, true);
    // On SQLite nothing was locked.
    if locks.exists() {
        assert!(std::fs::read_dir(&locks).unwrap().count() <= 1, "the file of the ended server is left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_ends_at_one_ends_its_streams_at_the_other() {
    let Some(host) = Host::new().await else { return };
    let (a, b) = (host.server(FOR_EVER, None).await, host.server(FOR_EVER, None).await);
    let events = b.tenant_events(&host.caller, None, None, None).await.unwrap();
    let mut events = Box::pin(b.while_allowed(host.caller.clone(), events));
    let id = host.begin(&a).await;
    assert_eq!(events.next().await.unwrap().kind, "computer.created");
    // The last one would stay.
    let store = host.database.store().await;
    let other = store.home().await.unwrap().new_key("another");
    store.insert_key(&other, &KeyActor::default()).await.unwrap();
    let key = a.key(&host.caller, &host.caller.key.to_string(), KeyForm::Key).await.unwrap();
    a.delete_key(&key).await.unwrap();
    // What happened before may still come; then it is over, although the computer goes on.
    while events.next().await.is_some() {}
    until(&a, id, Status::Running).await;
}
