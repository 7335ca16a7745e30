//! Runs the agent on this host, on a unix socket, and calls it.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// An agent of its own for each test; ends with it.
#[derive(Debug)]
pub struct Agent {
    process: Child,
    directory: TempDir,
    /// Who the tests run as, and so the only user an ordinary one can run commands as.
    pub user: String,
}

impl Agent {
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[])
    }

    pub fn start_with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let user = command_output("id", &["-un"]);
        let process = Command::new(env!("CARGO_BIN_EXE_roost-guest"))
            .arg("--unix")
            .arg(directory.path().join("agent.sock"))
            .args(["--user", &user])
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, directory, user }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub async fn connect(&self) -> Channel {
        let path = self.directory.path().join("agent.sock");
        within("the agent to listen", || path.exists()).await;
        let connector = tower::service_fn(move |_| {
            let path: PathBuf = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://guest")
            .initial_connection_window_size(4 << 20)
            .initial_stream_window_size(1 << 20);
        for _ in 0..50 {
            if let Ok(channel) = endpoint.connect_with_connector(connector.clone()).await {
                return channel;
            }
            // The socket's file is there a moment before it is listened on.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the agent does not accept connections");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

pub fn command_output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// Waits for something that no event tells a test about.
pub async fn within(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("gave up waiting for {what}");
}
