//! The measurements. Each group measures its operations and their floors in turns, so that whatever else the
//! host is doing falls on both.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use roost_tests::Picture;

use crate::bare::{Guest, Parts, Saved, Template};
use crate::host::Tree;
use crate::report::{Gate, Row, Unit, amount};
use crate::roost::{Made, Roost, Ticker, WORK, longest_gap};
use crate::statistics::Samples;

/// What can be named with `--only`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Group {
    /// Cold boot and create
    Create,
    /// Stop and start
    Stop,
    /// Clone: how long it takes, and how long the source stands still
    Clone,
    /// Snapshot and restore
    Snapshot,
    /// A command in a running computer
    Exec,
    /// The first byte of a command's stream
    Stream,
    /// A file there and back
    Files,
    /// Screenshot and click
    Desktop,
    /// Many creates and clones at once
    Concurrent,
    /// Memory and CPU of computers left alone
    Idle,
}

impl Group {
    pub const ALL: [Group; 10] = [
        Group::Create,
        Group::Stop,
        Group::Clone,
        Group::Snapshot,
        Group::Exec,
        Group::Stream,
        Group::Files,
        Group::Desktop,
        Group::Concurrent,
        Group::Idle,
    ];
}

/// How often things are done.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    pub boots: u32,
    /// Creates, screenshots, clicks.
    pub quick: u32,
    pub execs: u32,
    /// What saves memory.
    pub saves: u32,
    pub concurrent_creates: usize,
    pub concurrent_clones: usize,
    pub idle_computers: usize,
    pub idle_time: Duration,
}

impl Counts {
    pub const FULL: Self = Self {
        boots: 5,
        quick: 20,
        execs: 100,
        saves: 10,
        concurrent_creates: 20,
        concurrent_clones: 10,
        idle_computers: 10,
        idle_time: Duration::from_secs(30),
    };
    pub const QUICK: Self = Self {
        boots: 1,
        quick: 5,
        execs: 20,
        saves: 3,
        concurrent_creates: 5,
        concurrent_clones: 3,
        idle_computers: 3,
        idle_time: Duration::from_secs(10),
    };
}

const RESTORE: &str = "bare restore -> exec (template)";
const SAVE: &str = "bare save";
const RESTORE_SAVED: &str = "bare restore -> exec (saved)";

/// Shows a page with a form in a browser.
const FORM: &str = r#"
cat > /tmp/form.html <<'END'
<!doctype html><title>Form</title><h1>Order</h1><p>What would you like, and when?</p>
<form><label>Name <input name=name></label> <label>Mail <input type=email name=mail></label>
<label>Size <select name=size><option>small<option>large</select></label>
<fieldset><legend>Extras</legend><label><input type=checkbox name=a> Cheese</label>
<label><input type=checkbox name=b> Olives</label></fieldset>
<label><input type=radio name=when checked> Now</label> <label><input type=radio name=when> Later</label>
<label>Notes <textarea name=notes></textarea></label> <button>Send</button></form>
END
(firefox-esr /tmp/form.html >/dev/null 2>&1 &)
timeout 200 xdotool search --sync --onlyvisible --name 'Form' >/dev/null
"#;
const FORM_PATIENCE: Duration = Duration::from_secs(120);

/// What the measurements share.
#[derive(Debug)]
pub struct Bench {
    pub roost: Roost,
    pub parts: Parts,
    pub counts: Counts,
    /// Made when it is first needed.
    template: Option<Template>,
}

impl Bench {
    pub fn new(roost: Roost, parts: Parts, counts: Counts) -> Self {
        Self { roost, parts, counts, template: None }
    }

    pub async fn measure(&mut self, group: Group) -> Result<Vec<Row>> {
        match group {
            Group::Create => self.create().await,
            Group::Stop => self.stop().await,
            Group::Clone => self.clones().await,
            Group::Snapshot => self.snapshot().await,
            Group::Exec => self.exec().await,
            Group::Stream => self.stream().await,
            Group::Files => self.files().await,
            Group::Desktop => self.desktop().await,
            Group::Concurrent => self.concurrent().await,
            Group::Idle => self.idle().await,
        }
    }

    pub async fn fork(&mut self) -> Result<(Guest, Duration)> {
        let template = match self.template.take() {
            Some(template) => template,
            None => self.parts.template().await.context("the floor's template")?,
        };
        let forked = self.parts.fork(&template).await;
        self.template = Some(template);
        forked
    }

    /// A bare guest that has worked a little. It was restored from a file already: to save a fork takes QEMU
    /// much longer, because it reads the template's file to its end, and would be no fair floor.
    async fn worked_guest(&mut self) -> Result<Guest> {
        let (guest, _) = self.fork().await?;
        guest.agent.run(&["bash", "-lc", WORK]).await.context("the work in the bare guest")?;
        self.save_and_restore(guest, &mut Saves::default()).await
    }

    /// A computer that has worked just as much.
    async fn worked_computer(&self, name: &str) -> Result<String> {
        let made = self.roost.create(name).await?;
        self.roost.run_long(&made.id, WORK).await.context("the work in the computer")?;
        Ok(made.id)
    }

    /// Saves and restores a guest; returns it as it continues.
    async fn save_and_restore(&self, guest: Guest, times: &mut Saves) -> Result<Guest> {
        let (saved, elapsed): (Saved, _) = guest.save().await?;
        times.save.push(elapsed.as_secs_f64());
        let (guest, elapsed) = self.parts.restore(saved).await?;
        times.restore.push(elapsed.as_secs_f64());
        Ok(guest)
    }

    async fn create(&mut self) -> Result<Vec<Row>> {
        let (mut boots, mut forks, mut creates) =
            (Samples::default(), Samples::default(), Samples::default());
        for _ in 0..self.counts.boots {
            let (guest, elapsed) = self.parts.boot().await?;
            boots.push(elapsed.as_secs_f64());
            guest.discard().await?;
        }
        // The template, and its files in the page cache.
        let (guest, _) = self.fork().await?;
        guest.discard().await?;
        for _ in 0..self.counts.quick {
            let (guest, elapsed) = self.fork().await?;
            forks.push(elapsed.as_secs_f64());
            guest.discard().await?;
            let made = self.roost.create("bench-create").await?;
            creates.push(made.elapsed.as_secs_f64());
            self.roost.delete(&made.id).await?;
        }
        Ok(vec![
            Row::time("floor: cold boot -> exec", boots.clone()),
            Row::time("create -> exec", creates).beside(RESTORE, &forks, Gate::Times(2.0)).beside(
                "cold boot -> exec",
                &boots,
                Gate::Part(20),
            ),
        ])
    }

    async fn stop(&mut self) -> Result<Vec<Row>> {
        let mut guest = self.worked_guest().await?;
        let id = self.worked_computer("bench-stop").await?;
        let mut floor = Saves::default();
        let (mut stops, mut starts) = (Samples::default(), Samples::default());
        for _ in 0..self.counts.saves {
            guest = self.save_and_restore(guest, &mut floor).await?;
            stops.push(self.roost.stop(&id).await?.as_secs_f64());
            starts.push(self.roost.start_again(&id).await?.as_secs_f64());
        }
        // A window that was open before is open still: it continued and did not boot.
        self.roost.run(&id, "pgrep xfce4-terminal").await.context("the computer has lost its memory")?;
        guest.discard().await?;
        self.roost.delete(&id).await?;
        Ok(vec![
            Row::time("stop (memory kept)", stops).beside(SAVE, &floor.save, Gate::Times(2.0)),
            Row::time("start -> exec", starts).beside(RESTORE_SAVED, &floor.restore, Gate::Times(2.0)),
        ])
    }

    async fn clones(&mut self) -> Result<Vec<Row>> {
        let mut guest = self.worked_guest().await?;
        let id = self.worked_computer("bench-clone").await?;
        let mut floor = Saves::default();
        let (mut totals, mut gaps, mut quiet) = (Samples::default(), Samples::default(), Samples::default());
        for _ in 0..self.counts.saves {
            guest = self.save_and_restore(guest, &mut floor).await?;
            let made = self.roost.clone_of(&id).await?;
            totals.push(made.elapsed.as_secs_f64());
            self.roost.delete(&made.id).await?;
        }
        // Apart from the totals: the ticker is work, too.
        for _ in 0..self.counts.saves {
            let ticker = Ticker::start(&self.roost.client, &id).await?;
            let window = Duration::from_secs(1);
            let start = Instant::now();
            tokio::time::sleep(window).await;
            let begun = Instant::now();
            let made = self.roost.clone_of(&id).await?;
            let ended = Instant::now();
            // The gap ends with the first tick after it.
            tokio::time::sleep(Duration::from_millis(200)).await;
            let arrivals = ticker.stop().await?;
            let gap = longest_gap(&arrivals, begun, ended).context("no ticks")?;
            gaps.push(gap.as_secs_f64());
            let still = begun.checked_sub(Duration::from_millis(50)).unwrap_or(start);
            quiet.push(longest_gap(&arrivals, start, still).context("no ticks")?.as_secs_f64());
            self.roost.delete(&made.id).await?;
        }
        let reported: Samples = self.roost.reported_pauses()?.iter().map(Duration::as_secs_f64).collect();
        guest.discard().await?;
        self.roost.delete(&id).await?;
        let mut rows = vec![
            Row::time("clone (running) -> exec in it", totals).beside(SAVE, &floor.save, Gate::Times(3.0)),
            Row::time("clone: pause of the source", gaps).beside(SAVE, &floor.save, Gate::Times(1.5)).beside(
                "longest silence without clone",
                &quiet,
                Gate::None,
            ),
        ];
        if reported.count() > 0 {
            rows.push(Row::time("clone: pause, as the machine reports it", reported));
        }
        Ok(rows)
    }

    async fn snapshot(&mut self) -> Result<Vec<Row>> {
        let mut guest = self.worked_guest().await?;
        let id = self.worked_computer("bench-snapshot").await?;
        let mut floor = Saves::default();
        let (mut snapshots, mut restores) = (Samples::default(), Samples::default());
        for _ in 0..self.counts.saves {
            guest = self.save_and_restore(guest, &mut floor).await?;
            let (snapshot, elapsed) = self.roost.snapshot(&id).await?;
            snapshots.push(elapsed.as_secs_f64());
            let made = self.roost.restore(&id, &snapshot).await?;
            restores.push(made.elapsed.as_secs_f64());
            self.roost.delete(&made.id).await?;
            self.roost.delete_snapshot(&id, &snapshot).await?;
        }
        guest.discard().await?;
        self.roost.delete(&id).await?;
        Ok(vec![
            Row::time("snapshot (running) -> ready", snapshots).beside(SAVE, &floor.save, Gate::None),
            Row::time("restore -> exec", restores).beside(RESTORE_SAVED, &floor.restore, Gate::None),
        ])
    }

    async fn exec(&mut self) -> Result<Vec<Row>> {
        let (guest, _) = self.fork().await?;
        let made = self.roost.create("bench-exec").await?;
        let (mut bare, mut bare_shell, mut execs) =
            (Samples::default(), Samples::default(), Samples::default());
        let warm = 10;
        for index in 0..warm + self.counts.execs {
            let begun = Instant::now();
            guest.agent.run(&["true"]).await?;
            let floor = begun.elapsed();
            let begun = Instant::now();
            guest.agent.run(&["/bin/bash", "-lc", "true"]).await?;
            let shell = begun.elapsed();
            let begun = Instant::now();
            self.roost.run(&made.id, "true").await?;
            if index >= warm {
                execs.push(begun.elapsed().as_secs_f64());
                bare.push(floor.as_secs_f64());
                bare_shell.push(shell.as_secs_f64());
            }
        }
        guest.discard().await?;
        self.roost.delete(&made.id).await?;
        Ok(vec![
            Row::time("exec `true`", execs).beside("bare channel: true", &bare, Gate::Times(3.0)).beside(
                "bare channel: bash -lc true",
                &bare_shell,
                Gate::None,
            ),
        ])
    }

    async fn desktop(&mut self) -> Result<Vec<Row>> {
        let made = self.roost.create("bench-desktop").await?;
        let id = &made.id;
        let (mut screenshots, mut clicks) = (Samples::default(), Samples::default());
        let (mut scrots, mut xdotools) = (Samples::default(), Samples::default());
        let rounds = self.counts.quick.div_ceil(5);
        for round in 0..=rounds {
            // Each five times in turns; the first round warms up.
            let scrot = self.inside(id, "scrot --overwrite /tmp/bench.png").await?;
            let xdotool = self.inside(id, "xdotool mousemove 640 300 click 1").await?;
            for _ in 0..5 {
                let (png, elapsed) = self.roost.screenshot(id).await?;
                if round == 0 {
                    let picture = Picture::decode(&png)?;
                    ensure!((picture.width, picture.height) == (1280, 720), "the screen has another size");
                } else {
                    screenshots.push(elapsed.as_secs_f64());
                }
                let elapsed = self.roost.click(id, 640, 300).await?;
                if round > 0 {
                    clicks.push(elapsed.as_secs_f64());
                }
            }
            if round > 0 {
                scrot.into_iter().for_each(|time| scrots.push(time));
                xdotool.into_iter().for_each(|time| xdotools.push(time));
            }
        }
        let trees = self.accessibility_trees(id).await?;
        self.roost.delete(id).await?;
        Ok(vec![
            Row::time("screenshot 1280x720 PNG", screenshots).beside("scrot", &scrots, Gate::Part(8)),
            Row::time("click", clicks).beside("xdotool", &xdotools, Gate::Part(8)),
            Row::time("accessibility tree of Firefox with a form", trees).at_most(1.0),
        ])
    }

    /// How long the tree of a browser takes that shows a form. The first ones wait for the browser, and warm up.
    async fn accessibility_trees(&self, id: &str) -> Result<Samples> {
        self.roost.run_long(id, FORM).await?;
        let until = Instant::now() + FORM_PATIENCE;
        while !self.roost.tree(id).await?.0.contains(" \"Order\"") {
            ensure!(Instant::now() < until, "the browser shows no form");
        }
        let mut times = Samples::default();
        for round in 0..=self.counts.quick {
            let (_, elapsed) = self.roost.tree(id).await?;
            if round > 0 {
                times.push(elapsed.as_secs_f64());
            }
        }
        Ok(times)
    }

    /// Runs a command five times in a computer, and measures there how long each took, in seconds.
    async fn inside(&self, id: &str, command: &str) -> Result<Vec<f64>> {
        // The shell's own clock: `date` would be a process more.
        let script = format!(
            "for i in 1 2 3 4 5; do a=${{EPOCHREALTIME/./}}; {command} || exit; b=${{EPOCHREALTIME/./}}; \
             echo $((b - a)); done"
        );
        let output = self.roost.run_long(id, &script).await?;
        output
            .lines()
            .map(|line| {
                let microseconds: u32 = line.parse().with_context(|| format!("{command}: {line}"))?;
                Ok(f64::from(microseconds) / 1e6)
            })
            .collect()
    }

    async fn concurrent(&mut self) -> Result<Vec<Row>> {
        let count = self.counts.concurrent_creates;
        let names: Vec<String> = (0..count).map(|index| format!("bench-many-{index}")).collect();
        let many = try_join_all(names.iter().map(|name| self.roost.create(name))).await?;
        let creates = times(&many);
        self.delete_all(&many).await?;

        let clones = self.counts.concurrent_clones;
        let id = self.worked_computer("bench-cloned").await?;
        let many = try_join_all((0..clones).map(|_| self.roost.clone_of(&id))).await?;
        let cloned = times(&many);
        self.delete_all(&many).await?;
        self.roost.delete(&id).await?;
        Ok(vec![
            Row::time(format!("{count} creates at once, each -> exec"), creates),
            Row::time(format!("{clones} clones of one at once, each -> exec"), cloned),
        ])
    }

    async fn idle(&mut self) -> Result<Vec<Row>> {
        let mut computers = Vec::new();
        for index in 0..self.counts.idle_computers {
            computers.push(self.roost.create(&format!("bench-idle-{index}")).await?);
        }
        tokio::time::sleep(self.counts.idle_time).await;
        let ids: Vec<&str> = computers.iter().map(|made| made.id.as_str()).collect();
        let trees = self.roost.trees(&ids)?;
        let begun = Instant::now();
        let before: Vec<f64> = trees.iter().map(Tree::cpu_seconds).collect::<Result<_>>()?;
        tokio::time::sleep(self.counts.idle_time).await;
        let elapsed = begun.elapsed().as_secs_f64();
        let after: Vec<f64> = trees.iter().map(Tree::cpu_seconds).collect::<Result<_>>()?;
        let cpu: Samples =
            before.iter().zip(&after).map(|(before, after)| (after - before) / elapsed * 100.0).collect();
        let memory = self.roost.pss(&trees)?;
        self.delete_all(&computers).await?;
        let up = computers.len();
        let label = |what: &str, samples: &Samples, unit| {
            let mean = samples.mean().map(|mean| amount(mean, unit)).unwrap_or_default();
            format!("{what} of an idle desktop, {up} up (mean {mean})")
        };
        Ok(vec![
            Row::new(label("memory (PSS)", &memory, Unit::Bytes), Unit::Bytes, memory)
                .at_most(f64::from(100 * 1024 * 1024)),
            Row::new(label("CPU", &cpu, Unit::Percent), Unit::Percent, cpu).at_most(2.0),
        ])
    }

    async fn delete_all(&self, computers: &[Made]) -> Result<()> {
        try_join_all(computers.iter().map(|made| self.roost.delete(&made.id))).await.map(drop)
    }
}

/// Times of a bare guest that is saved and restored again and again.
#[derive(Debug, Default)]
struct Saves {
    save: Samples,
    restore: Samples,
}

fn times(many: &[Made]) -> Samples {
    many.iter().map(|made| made.elapsed.as_secs_f64()).collect()
}
