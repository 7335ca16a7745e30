//! `roost ssh`, and the proxy command that lets ssh, scp and everything on top of them reach a computer.
//!
//! Nothing listens in the computer: the proxy command runs an sshd there that speaks over the command's own streams.
//! Whoever may run commands as root is let in; the account's own password, if it has one, is still asked for.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use roost_api::Computer;

use crate::client::Client;
use crate::exec::{Streams, run};

#[derive(Debug, Args)]
pub(crate) struct SshArgs {
    /// Name, slug or id
    name: String,
    /// Who to be in the computer
    #[arg(long, default_value = "user")]
    user: String,
    /// Options of ssh, or a command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SshProxyArgs {
    /// Name, slug or id; `.roost` at its end is left out
    name: String,
}

/// Host keys are made when they are missing; a computer that nobody has reached by ssh has none.
const SSHD: &str = "mkdir -p /run/sshd && ssh-keygen -A >/dev/null && exec /usr/sbin/sshd -i -q \
    -o UsePAM=no -o PasswordAuthentication=yes -o PermitEmptyPasswords=yes";

pub(crate) async fn ssh(client: &Client, args: &SshArgs) -> anyhow::Result<ExitCode> {
    let computer = client.find(&args.name).await?;
    let program = std::env::current_exe().context("failed to find this program")?;
    let mut command = std::process::Command::new("ssh");
    command.args(options(&computer, &program.to_string_lossy()));
    // Options of ssh come before the host, a command after it.
    let (options, command_line) = split(&args.arguments);
    command.args(options).arg(format!("{}@{}", args.user, computer.slug)).args(command_line);
    command.env("ROOST_URL", client.url()).env("ROOST_API_KEY", client.key());
    Err(command.exec()).context("failed to run ssh: is it installed?")
}

fn options(computer: &Computer, program: &str) -> Vec<String> {
    let quoted = program.replace('\'', r"'\''");
    [
        format!("ProxyCommand='{quoted}' ssh-proxy {}", computer.id),
        // The key belongs to the computer, whatever its name.
        format!("HostKeyAlias=roost-{}", computer.id),
        "StrictHostKeyChecking=accept-new".to_owned(),
    ]
    .into_iter()
    .flat_map(|option| ["-o".to_owned(), option])
    .collect()
}

/// The options among the arguments, and what comes after them.
fn split(arguments: &[String]) -> (&[String], &[String]) {
    const TAKE_A_VALUE: &str = "BbcDEeFIiJLlmOopQRSWw";
    let mut index = 0;
    while let Some(argument) = arguments.get(index) {
        match argument.strip_prefix('-') {
            Some("-") => return (&arguments[..index], &arguments[index + 1..]),
            Some(letters) if !letters.is_empty() => {
                let takes = letters.chars().next_back().filter(|letter| TAKE_A_VALUE.contains(*letter));
                index += if letters.len() == 1 && takes.is_some() { 2 } else { 1 };
            }
            _ => break,
        }
    }
    arguments.split_at(index.min(arguments.len()))
}

pub(crate) async fn proxy(client: &Client, args: &SshProxyArgs) -> anyhow::Result<ExitCode> {
    let name = args.name.strip_suffix(".roost").unwrap_or(&args.name);
    let computer = client.find(name).await?;
    let query = [("command", SSHD), ("user", "root")];
    run(client, &computer, &query, Streams::Passed).await
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn options_of_ssh_are_told_from_a_command() {
        let cases: [(&[&str], usize); 7] = [
            (&[], 0),
            (&["uptime"], 0),
            (&["-v", "uptime", "-p"], 1),
            (&["-L", "80:localhost:80", "uptime"], 2),
            (&["-L80:localhost:80", "uptime"], 1),
            (&["-o", "X=y", "-N"], 3),
            (&["-L"], 1),
        ];
        for (arguments, options) in cases {
            let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(split(&arguments).0.len(), options, "{arguments:?}");
        }
        let dashes = ["-v", "--", "-x"].map(str::to_owned);
        assert_eq!(split(&dashes), (&dashes[..1], &dashes[2..]));
    }
}
