//! From what a call asks for to what is started: the user, the directory, the environment.

use std::collections::{BTreeMap, HashMap};

use tonic::Status;

use super::{
    account::{self, Account, AccountError},
    launch::{Launch, Streams},
};
use crate::{desktop::display::DisplayAddress, system::environment::Environment};

/// What every call that starts something says of it.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// Empty: the user's login shell.
    pub(crate) argv: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) env: HashMap<String, String>,
    pub(crate) user: String,
}

/// How commands are started in this computer.
#[derive(Debug, Clone)]
pub(crate) struct Commands {
    environment: Environment,
    desktop_user: String,
    display: DisplayAddress,
}

impl Commands {
    pub(crate) fn new(environment: Environment, desktop_user: String, display: DisplayAddress) -> Self {
        Self { environment, desktop_user, display }
    }

    pub(crate) fn prepare(&self, asked: Asked, streams: Streams) -> Result<Launch, Status> {
        let Asked { argv, cwd, env, user } = asked;
        if argv.iter().chain([&cwd]).chain(env.values()).any(|text| text.contains('\0')) {
            return Err(Status::invalid_argument("argv, cwd and env must not contain NUL bytes"));
        }
        if let Some(name) = env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return Err(Status::invalid_argument(format!("`{name}` is no name for an environment variable")));
        }
        let user = if user.is_empty() { &self.desktop_user } else { &user };
        let account = account::find(user).map_err(|error| match error {
            AccountError::Unknown(_) => Status::not_found(error.to_string()),
            AccountError::Read { .. } => Status::internal(error.to_string()),
        })?;
        let argv = if argv.is_empty() { vec![account.shell.clone(), "-l".to_owned()] } else { argv };
        let cwd = match cwd {
            cwd if cwd.is_empty() => account.home.clone(),
            cwd if cwd.starts_with('/') => cwd,
            cwd => format!("{}/{cwd}", account.home),
        };
        let mut env = self.environment_of(&account, env);
        if let Streams::Terminal(_) = streams {
            env.entry("TERM".to_owned()).or_insert_with(|| "xterm-256color".to_owned());
        }
        Ok(Launch { argv, cwd, env, account, streams })
    }

    /// A login's environment, then the computer's, then the call's.
    fn environment_of(&self, account: &Account, call: HashMap<String, String>) -> BTreeMap<String, String> {
        let mut env = login_environment(account);
        if account.name == self.desktop_user {
            env.extend(session_environment(account, &self.display));
        } else if account.uid.is_root() {
            env.extend(display_environment(&self.display));
        }
        env.extend(self.environment.variables().iter().map(|(name, value)| (name.clone(), value.clone())));
        env.extend(call);
        env
    }
}

fn login_environment(account: &Account) -> BTreeMap<String, String> {
    let path = if account.uid.is_root() {
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()
    } else {
        format!("{}/.local/bin:/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games", account.home)
    };
    [
        ("HOME", account.home.as_str()),
        ("USER", &account.name),
        ("LOGNAME", &account.name),
        ("SHELL", &account.shell),
        ("PATH", &path),
        ("LANG", "C.UTF-8"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn display_environment(display: &DisplayAddress) -> BTreeMap<String, String> {
    let authority = display.authority().display().to_string();
    [("DISPLAY".to_owned(), display.name()), ("XAUTHORITY".to_owned(), authority)].into()
}

/// What makes a program part of the user's desktop session.
pub(crate) fn session_environment(account: &Account, display: &DisplayAddress) -> BTreeMap<String, String> {
    let runtime = format!("/run/user/{}", account.uid.as_raw());
    let mut env = display_environment(display);
    env.insert("DBUS_SESSION_BUS_ADDRESS".to_owned(), format!("unix:path={runtime}/bus"));
    env.insert("XDG_RUNTIME_DIR".to_owned(), runtime);
    env
}
