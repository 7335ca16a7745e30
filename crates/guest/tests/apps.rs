//! Desktop programs, as a host sees them. apt and dpkg are scripts of the test: what real ones do to a real computer is
//! tested there.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "each test program uses its part of the support")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use roost_guest_proto::v1::{
    InstallReply, InstallRequest, InstallStep, LaunchRequest, ListAppsRequest, apps_client::AppsClient,
    install_reply::State,
};
use tonic::{Code, Streaming, transport::Channel};

use support::{Agent, within};

/// A computer whose package tools do what a test tells them, in a directory that is gone at the end.
struct Computer {
    tools: tempfile::TempDir,
    agent: Agent,
}

impl Computer {
    fn new(apt: &str) -> Self {
        let tools = tempfile::tempdir().unwrap();
        let program = |name: &str, script: &str| {
            let path = tools.path().join(name);
            let log = tools.path().join("calls");
            let text = format!("#!/bin/sh\nprintf '%s\\n' \"{name} $*\" >>{}\n{script}\n", log.display());
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        let installed = tools.path().join("installed");
        program("dpkg-query", &format!("test -e {} && echo installed", installed.display()));
        program("dpkg", "");
        program("apt-get", &apt.replace("INSTALLED", &installed.display().to_string()));
        let entries = tools.path().join("share/applications");
        fs::create_dir_all(&entries).unwrap();
        let text = "[Desktop Entry]\nType=Application\nName=A Shell\nExec=sh %F\nCategories=System;\n";
        fs::write(entries.join("shell.desktop"), text).unwrap();
        let path = format!("{}:/usr/bin:/bin", tools.path().display());
        let share = tools.path().join("share");
        let agent = Agent::start_with(&[], &[("PATH", &path), ("XDG_DATA_DIRS", share.to_str().unwrap())]);
        Self { tools, agent }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.tools.path().join(name)
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.file("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

async fn install(client: &mut AppsClient<Channel>, packages: &[&str]) -> Streaming<InstallReply> {
    let packages = packages.iter().map(|name| (*name).to_owned()).collect();
    client.install(InstallRequest { packages }).await.unwrap().into_inner()
}

/// Everything that is said up to the end.
async fn to_the_end(mut replies: Streaming<InstallReply>) -> Vec<State> {
    let mut states = Vec::new();
    while let Some(reply) = replies.message().await.unwrap() {
        states.push(reply.state.unwrap());
    }
    states
}

#[tokio::test]
async fn lists_what_menus_show() {
    let computer = Computer::new("");
    let mut client = AppsClient::new(computer.agent.connect().await);
    let apps = client.list(ListAppsRequest {}).await.unwrap().into_inner().apps;
    let app = apps.iter().find(|app| app.id == "shell").unwrap();
    assert_eq!((app.name.as_str(), app.exec.as_str()), ("A Shell", "sh"));
    assert_eq!(app.categories, ["System"]);
    let launched = client.launch(LaunchRequest { app: "no such app".to_owned() }).await;
    assert_eq!(launched.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn installs_once_and_tells_how_it_goes() {
    let computer = Computer::new(
        "case \"$*\" in *install*) echo dlstatus:1:50.0000:x; echo pmstatus:geany:50.0000:x; touch INSTALLED;; esac",
    );
    let mut client = AppsClient::new(computer.agent.connect().await);
    let states = to_the_end(install(&mut client, &["geany"]).await).await;
    assert!(matches!(states.last(), Some(State::Installed(_))), "{states:?}");
    let calls = computer.calls();
    assert!(calls[0].starts_with("dpkg-query"), "{calls:?}");
    assert_eq!(calls[1], "dpkg --configure -a");
    assert!(calls[2].ends_with("update") && calls[3].ends_with("install -- geany"), "{calls:?}");
    // It is there: nothing is done again.
    let states = to_the_end(install(&mut client, &["geany"]).await).await;
    assert!(matches!(states.last(), Some(State::Installed(_))), "{states:?}");
    assert_eq!(computer.calls().len(), calls.len() + 1);
}

#[tokio::test]
async fn goes_on_without_its_caller_who_may_come_back() {
    let computer = Computer::new(
        "case \"$*\" in *install*) touch INSTALLED.begun; cat INSTALLED.go; touch INSTALLED;; esac",
    );
    let go = computer.file("installed.go");
    assert!(std::process::Command::new("mkfifo").arg(&go).status().unwrap().success());
    let channel = computer.agent.connect().await;
    let mut client = AppsClient::new(channel.clone());
    let first = install(&mut client, &["bb", "aa"]).await;
    within("the installation to begin", || computer.file("installed.begun").exists()).await;
    drop(first);
    // The same packages in another order are the same installation; others wait for it.
    let mut again = install(&mut client, &["aa", "bb"]).await;
    let now = again.message().await.unwrap().unwrap().state.unwrap();
    assert!(matches!(&now, State::Installing(at) if at.step() == InstallStep::Downloading), "{now:?}");
    let mut other = install(&mut client, &["cc"]).await;
    let waits = other.message().await.unwrap().unwrap().state.unwrap();
    assert!(matches!(&waits, State::Installing(at) if at.step() == InstallStep::Waiting), "{waits:?}");
    release(&go).await;
    assert!(matches!(to_the_end(again).await.last(), Some(State::Installed(_))));
    assert!(matches!(to_the_end(other).await.last(), Some(State::Installed(_))));
    let installs = computer.calls().iter().filter(|call| call.contains("install --")).count();
    assert_eq!(installs, 1, "{:?}", computer.calls());
}

async fn release(fifo: &Path) {
    let fifo = fifo.to_owned();
    tokio::task::spawn_blocking(move || fs::write(fifo, "go")).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_failure_says_why_and_the_next_try_is_a_new_one() {
    let computer = Computer::new(
        "case \"$*\" in *install*) echo 'W: so' >&2; echo 'E: Unable to locate package nothing' >&2; exit 100;; esac",
    );
    let mut client = AppsClient::new(computer.agent.connect().await);
    for _ in 0..2 {
        let states = to_the_end(install(&mut client, &["nothing"]).await).await;
        let failed = State::Failed("Unable to locate package nothing".to_owned());
        assert_eq!(states.last(), Some(&failed));
    }
    let option = client.install(InstallRequest { packages: vec!["-oX=y".to_owned()] }).await;
    assert_eq!(option.unwrap_err().code(), Code::InvalidArgument);
    let nothing = client.install(InstallRequest { packages: Vec::new() }).await;
    assert_eq!(nothing.unwrap_err().code(), Code::InvalidArgument);
    // What an interrupted installation left is repaired before each.
    let repairs = computer.calls().iter().filter(|call| *call == "dpkg --configure -a").count();
    assert_eq!(repairs, 2);
}
