//! Clients that other people wrote, against a server of ours: the official Python client, a browser, and one that makes
//! its requests up from our own OpenAPI document.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use roost_tests::Server;

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn the_official_python_client_works_unmodified() -> Result<()> {
    // A region to move to, and webhooks to this machine.
    let settings = [("ROOST_REGIONS", "us-east-ny"), ("ROOST_WEBHOOKS_ANYWHERE", "true")];
    run(&Server::start_with(&settings)?, &mut pytest(), "python", None)
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn every_answer_is_what_the_openapi_document_declares() -> Result<()> {
    let settings = [("ROOST_REGIONS", "us-east-ny"), ("ROOST_WEBHOOKS_ANYWHERE", "true")];
    run(&Server::start_with(&settings)?, &mut pytest(), "contract", None)
}

fn pytest() -> Command {
    let python = std::env::var("ROOST_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut command = Command::new(python);
    command.args(["-m", "pytest", "-q"]);
    command
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_browser_shows_and_drives_the_desktop() -> Result<()> {
    let server = Server::start()?;
    let id = server.client().create("in-a-browser").await?;
    run(&server, Command::new("node").args(["--test"]), "browser", Some(&id))
}

fn run(server: &Server, command: &mut Command, directory: &str, computer: Option<&str>) -> Result<()> {
    command
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(directory))
        .env("ROOST_URL", &server.url)
        .env("ROOST_API_KEY", &server.key);
    if let Some(id) = computer {
        command.env("ROOST_COMPUTER_ID", id);
    }
    let status = command.status()?;
    ensure!(status.success(), "{directory}: {status}\n{}", server.log());
    Ok(())
}
