//! What running costs: against simulated machines and a clock that only the test moves, through crashes of the
//! control plane and of machines.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod silent;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use camino::Utf8PathBuf;
use roost_api::{
    ComputerId, CreateComputer, ErrorCode, EventId, GrantCredits, MicroCredits, Size, Status, TenantId,
    Timestamp,
};
use roost_control::status::status;
use roost_control::{
    Caller, Config, Control, CreditConfig, EventRetention, FileConfig, NoHook, PublicUrls, SealKey, Sharing,
    StreamKey, TemplateError, TemplateFiles, Templates, WarmFiles,
};
use roost_launch::Report;
use roost_launch::simulated::Simulated;
use roost_machine_proto::{Accelerator, NetworkSpec};
use roost_store::testing::TestDatabase;
use roost_store::{Clock, EventsOf, RunFilter, RunRecord, Store};
use tokio::runtime::Runtime;

const SECOND: i64 = 1_000_000;

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

/// Stands still until it is moved.
#[derive(Debug)]
struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst)).unwrap()
    }
}

impl TestClock {
    fn micros(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }

    fn pass(&self, micros: i64) {
        self.0.fetch_add(micros, Ordering::SeqCst);
    }
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn duration(&mut self, longest_seconds: u64) -> i64 {
        i64::try_from(self.below(longest_seconds * 1_000_000)).unwrap()
    }
}

/// A control plane in a runtime of its own, which can be killed.
struct Server {
    runtime: Runtime,
    control: Control,
    store: Store,
    caller: Caller,
}

struct World {
    /// Of the test itself.
    runtime: Runtime,
    database: TestDatabase,
    launcher: Arc<Simulated>,
    clock: Arc<TestClock>,
    credits: CreditConfig,
    sharing: Sharing,
    /// Where servers leave word that they live.
    _locks: tempfile::TempDir,
}

impl World {
    fn new(credits: CreditConfig) -> Self {
        let runtime = Runtime::new().unwrap();
        let database = runtime.block_on(TestDatabase::new());
        let clock = Arc::new(TestClock(AtomicI64::new(1_800_000_000 * SECOND)));
        let locks = tempfile::tempdir().unwrap();
        let sharing = Sharing {
            locks: Some(Utf8PathBuf::try_from(locks.path().join("servers")).unwrap()),
            ..Sharing::default()
        };
        Self { runtime, database, launcher: Arc::default(), clock, credits, sharing, _locks: locks }
    }

    fn server(&self) -> Server {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (control, store, caller) = runtime.block_on(async {
            let store = self.database.store().await.with_clock(self.clock.clone());
            let home = store.home().await.unwrap();
            let caller = home.administrator();
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
                credits: self.credits,
                sharing: self.sharing.clone(),
                files: FileConfig::default(),
            };
            let templates = Arc::new(OneTemplate);
            let control =
                Control::start(store.clone(), self.launcher.clone(), templates, config, Arc::new(NoHook));
            (control.await.unwrap(), store, caller)
        });
        Server { runtime, control, store, caller }
    }
}

impl Server {
    fn create(&self, size: &str) -> Result<ComputerId, ErrorCode> {
        let request = CreateComputer {
            name: Some("box".to_owned()),
            template_type: Some("miosa-desktop".to_owned()),
            size: Some(size.to_owned()),
            ..CreateComputer::default()
        };
        self.runtime.block_on(async {
            let created = self.control.create(&self.caller, request).await;
            let created = created.map_err(|failure| failure.public.code)?;
            let id = created.record.id;
            created.ended().await;
            Ok(id)
        })
    }

    fn grant(&self, credits: u32) {
        let request = GrantCredits { tenant_id: None, credits, description: None };
        self.runtime.block_on(self.control.grant_credits(&self.caller, request)).unwrap();
    }

    fn meter(&self) {
        self.runtime.block_on(self.control.meter()).unwrap();
    }

    /// Waits until nobody is at work on the computer.
    fn idle(&self, id: ComputerId) {
        self.runtime.block_on(self.control.wait_until(id, |record| record.intended.is_none())).unwrap();
    }

    fn is_running(&self, id: ComputerId) -> bool {
        let record = self.runtime.block_on(self.store.computer(id)).unwrap().unwrap();
        status(&record) == Status::Running
    }

    fn runs(&self) -> Vec<RunRecord> {
        let start = Timestamp::from_micros(0).unwrap();
        let end = Timestamp::from_micros(i64::MAX / 100).unwrap();
        let filter = RunFilter { start, end, computer: None };
        self.runtime
            .block_on(self.store.runs(&roost_store::Reach::whole(self.caller.tenant), &filter))
            .unwrap()
    }

    fn left(&self) -> MicroCredits {
        self.runtime.block_on(self.store.balance(self.caller.tenant)).unwrap().unwrap().left
    }

    fn events(&self) -> Vec<String> {
        let events = self.store.events_after(EventId(0), EventsOf::Tenant(self.caller.tenant), 10_000);
        self.runtime.block_on(events).unwrap().events.into_iter().map(|event| event.kind).collect()
    }

    /// The sum of what the ledger has.
    fn ledger(&self, tenant: TenantId) -> i64 {
        let (rows, total) = self.runtime.block_on(self.store.transactions(tenant, 0, 100_000)).unwrap();
        assert_eq!(rows.len() as u64, total);
        rows.iter().map(|row| row.amount.0).sum()
    }

    /// Ends everything at once, in the middle of whatever it was doing. What has ended does nothing any more: its
    /// threads are waited for, or it would go on at a time of the clock at which it is dead.
    fn kill(self) {
        let Self { runtime, .. } = self;
        runtime.shutdown_timeout(Duration::from_secs(60));
    }
}

/// How long a computer has run, as the test knows it.
#[derive(Debug, Default)]
struct Truth {
    since: Option<i64>,
    proven: i64,
    micros: i64,
    /// How much of that may be missing in the books.
    unproven: i64,
}

fn random_life(seed: u64) {
    const GRANTED: u32 = 1_000_000;
    let world = World::new(CreditConfig::default());
    let mut dice = Dice(seed);
    let mut server = world.server();
    server.grant(GRANTED);
    let computers: Vec<_> = ["small", "large"].iter().map(|size| server.create(size).unwrap()).collect();
    let now = world.clock.micros();
    let mut truths: HashMap<ComputerId, Truth> = computers
        .iter()
        .map(|id| (*id, Truth { since: Some(now), proven: now, ..Truth::default() }))
        .collect();
    for _ in 0..40 {
        world.clock.pass(dice.duration(900));
        let id = computers[usize::try_from(dice.below(2)).unwrap()];
        let verb = dice.below(3);
        let control = server.control.clone();
        let work = async move {
            // What the status does not allow is refused.
            match verb {
                0 => drop(control.stop(id).await),
                1 => drop(control.start_computer(id).await),
                _ => drop(control.restart(id).await),
            }
        };
        match dice.below(4) {
            0 => {
                let work = server.runtime.spawn(work);
                std::thread::sleep(Duration::from_micros(dice.below(4000)));
                drop(work);
                server.kill();
                // What was under way is finished at the same time of the clock.
                server = world.server();
                computers.iter().for_each(|id| server.idle(*id));
            }
            1 => server.runtime.block_on(work),
            2 => {
                server.meter();
                truths.values_mut().for_each(|truth| truth.proven = world.clock.micros());
            }
            _ => {
                server.kill();
                world.clock.pass(dice.duration(7200));
                if dice.below(2) == 0 {
                    world.launcher.report(id, Report::Vanished);
                    let truth = truths.get_mut(&id).unwrap();
                    if let Some(since) = truth.since.take() {
                        let end = world.clock.micros();
                        truth.micros += end - since;
                        truth.unproven += end - truth.proven.max(since);
                    }
                    world.clock.pass(dice.duration(7200));
                }
                server = world.server();
                computers.iter().for_each(|id| server.idle(*id));
            }
        }
        let now = world.clock.micros();
        for (id, truth) in &mut truths {
            match (truth.since, server.is_running(*id)) {
                (None, true) => truth.since = Some(now),
                (Some(since), false) => {
                    truth.micros += now - since;
                    truth.since = None;
                }
                (None, false) | (Some(_), true) => {}
            }
        }
    }
    world.clock.pass(100 * SECOND);
    for id in computers {
        let truth = truths.get_mut(&id).unwrap();
        if let Some(since) = truth.since.take() {
            truth.micros += world.clock.micros() - since;
        }
        server.runtime.block_on(server.control.delete(id)).unwrap();
    }

    let runs = server.runs();
    let mut charged = 0;
    for (id, truth) in &truths {
        let mut of_one: Vec<&RunRecord> = runs.iter().filter(|run| run.computer == *id).collect();
        of_one.sort_by_key(|run| run.started_at);
        for pair in of_one.windows(2) {
            assert!(pair[0].ended_at.unwrap() <= pair[1].started_at, "two runs at one time");
        }
        let billed: i64 =
            of_one.iter().map(|run| run.ended_at.unwrap().as_micros() - run.started_at.as_micros()).sum();
        assert!(
            (truth.micros - truth.unproven..=truth.micros).contains(&billed),
            "seed {seed}: billed {billed}, {truth:?}"
        );
        for run in of_one {
            let length = run.ended_at.unwrap().as_micros() - run.started_at.as_micros();
            assert_eq!(run.cost, run.price.of_time(length));
            charged += run.cost.0;
        }
    }
    let granted = MicroCredits::from_credits(GRANTED).0;
    assert_eq!(server.left().0, granted - charged);
    assert_eq!(server.ledger(server.caller.tenant), granted - charged);
    server.kill();
    drop(world.runtime);
}

#[test]
fn what_is_charged_is_what_ran_however_often_the_control_plane_is_killed() {
    for seed in 1..=6 {
        random_life(seed);
    }
}

#[test]
fn what_ran_while_nobody_was_there_is_charged_when_it_is_found_alive() {
    let world = World::new(CreditConfig::default());
    let server = world.server();
    server.grant(1000);
    let id = server.create("small").unwrap();
    server.kill();
    world.clock.pass(10 * 3600 * SECOND);
    let server = world.server();
    assert!(server.is_running(id));
    assert_eq!(server.left(), MicroCredits::from_credits(970));
    // It dies while somebody watches: it is charged up to that moment.
    world.clock.pass(3600 * SECOND);
    world.launcher.report(id, Report::Vanished);
    server.runtime.block_on(server.control.wait_until(id, |r| status(r) == Status::Error)).unwrap();
    world.clock.pass(3600 * SECOND);
    assert_eq!(server.left(), MicroCredits::from_credits(967));
    assert_eq!(server.ledger(server.caller.tenant), server.left().0);
}

#[test]
fn what_nobody_saw_end_is_charged_up_to_where_it_is_proven() {
    let mut world = World::new(CreditConfig::default());
    // Where there can be several servers, the next one takes the first for alive, and goes on beside it.
    world.sharing.locks = None;
    let server = world.server();
    server.grant(1000);
    let id = server.create("small").unwrap();
    world.clock.pass(3600 * SECOND);
    server.meter();
    server.kill();
    world.clock.pass(2 * 3600 * SECOND);
    world.launcher.report(id, Report::Vanished);
    world.clock.pass(2 * 3600 * SECOND);
    let server = world.server();
    assert!(!server.is_running(id));
    assert_eq!(server.left(), MicroCredits::from_credits(997));
    assert_eq!(server.ledger(server.caller.tenant), server.left().0);
}

#[test]
fn a_tenant_is_told_then_stopped_without_loss_then_refused_then_goes_on() {
    let starting = Some(MicroCredits::from_credits(3));
    let world = World::new(CreditConfig { starting, ..CreditConfig::default() });
    let server = world.server();
    let id = server.create("small").unwrap();
    let count = |kind: &str| server.events().iter().filter(|event| *event == kind).count();
    world.clock.pass(40 * 60 * SECOND);
    server.meter();
    assert_eq!((count("credits.low"), count("credits.exhausted")), (0, 0));
    world.clock.pass(11 * 60 * SECOND);
    server.meter();
    server.meter();
    assert_eq!((count("credits.low"), count("credits.exhausted")), (1, 0));
    assert!(server.is_running(id));

    world.clock.pass(9 * 60 * SECOND);
    server.meter();
    server.runtime.block_on(server.control.wait_until(id, |r| status(r) == Status::Stopped)).unwrap();
    assert!(world.launcher.has_memory(id));
    assert_eq!((count("credits.low"), count("credits.exhausted")), (1, 1));
    assert_eq!(server.left(), MicroCredits(0));
    assert_eq!(server.create("small"), Err(ErrorCode::InsufficientCredits));
    let refused = server.runtime.block_on(server.control.start_computer(id)).unwrap_err();
    assert_eq!(refused.public.code, ErrorCode::InsufficientCredits);

    server.grant(1);
    server.runtime.block_on(server.control.start_computer(id)).unwrap();
    world.clock.pass(3600 * SECOND);
    server.meter();
    server.runtime.block_on(server.control.wait_until(id, |r| status(r) == Status::Stopped)).unwrap();
    // Nobody looked for an hour: there was no time to tell, and what ran in it is owed.
    assert_eq!((count("credits.low"), count("credits.exhausted")), (1, 2));
    assert_eq!(
        server.left(),
        MicroCredits::from_credits(1).0.checked_sub(3_000_000).map(MicroCredits).unwrap()
    );
    assert_eq!(server.ledger(server.caller.tenant), server.left().0);
}

#[test]
fn what_ran_before_the_first_grant_is_not_paid_for_and_long_runs_are_posted_hourly() {
    let world = World::new(CreditConfig::default());
    let server = world.server();
    server.create("medium").unwrap();
    world.clock.pass(5 * 3600 * SECOND);
    server.meter();
    server.grant(100);
    assert_eq!(server.left(), MicroCredits::from_credits(100));
    for _ in 0..120 {
        world.clock.pass(60 * SECOND);
        server.meter();
    }
    assert_eq!(server.left(), MicroCredits::from_credits(88));
    let (rows, total) =
        server.runtime.block_on(server.store.transactions(server.caller.tenant, 0, 100)).unwrap();
    assert_eq!((total, rows[0].amount.0), (3, -6_000_000));
}
