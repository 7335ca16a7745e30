//! Who a command runs as: `/etc/passwd` and `/etc/group`, read directly, because the name service of the C
//! library loads plugins and this binary is static.

use std::{fs, io, path::Path};

use rustix::fs::{Gid, Uid};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) home: String,
    pub(crate) shell: String,
    /// All groups, the primary one first.
    pub(crate) groups: Vec<Gid>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum AccountError {
    #[error("there is no user `{0}` on this computer")]
    Unknown(String),
    #[error("read {file}: {source}")]
    Read { file: &'static str, source: io::Error },
}

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

pub(crate) fn find(name: &str) -> Result<Account, AccountError> {
    let passwd = read(PASSWD)?;
    let group = read(GROUP)?;
    find_in(&passwd, &group, name).ok_or_else(|| AccountError::Unknown(name.to_owned()))
}

/// Names are what is looked for, and they are ASCII; other fields may be anything.
fn read(file: &'static str) -> Result<String, AccountError> {
    match fs::read(Path::new(file)) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(source) => Err(AccountError::Read { file, source }),
    }
}

fn find_in(passwd: &str, group: &str, name: &str) -> Option<Account> {
    let mut account = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [user, _, uid, gid, _, home, shell] = fields[..] else { return None };
        if user != name {
            return None;
        }
        let gid = gid_of(gid)?;
        Some(Account {
            name: user.to_owned(),
            uid: Uid::from_raw(uid.parse().ok().filter(|uid| *uid != u32::MAX)?),
            gid,
            home: if home.is_empty() { "/".to_owned() } else { home.to_owned() },
            shell: if shell.is_empty() { "/bin/sh".to_owned() } else { shell.to_owned() },
            groups: vec![gid],
        })
    })?;
    for line in group.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, gid, members] = fields[..] else { continue };
        if members.split(',').any(|member| member == name)
            && let Some(gid) = gid_of(gid)
            && !account.groups.contains(&gid)
        {
            account.groups.push(gid);
        }
    }
    Some(account)
}

/// The largest value means "no change" to the kernel.
fn gid_of(text: &str) -> Option<Gid> {
    text.parse().ok().filter(|gid| *gid != u32::MAX).map(Gid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        broken line\n\
        user:x:1000:1001:A User,,,:/home/user:/bin/zsh\n\
        bare:x:1002:1002:::\n\
        huge:x:4294967295:0::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:other,user\nuser:x:1001:user\nvideo:x:44:user\nusers:x:100:user2\nbad:x:z:user\n";

    #[test]
    fn finds_a_user_with_all_groups_once() {
        let account = find_in(PASSWD, GROUP, "user").unwrap();
        assert_eq!(account.uid.as_raw(), 1000);
        assert_eq!(account.home, "/home/user");
        assert_eq!(account.shell, "/bin/zsh");
        let groups: Vec<u32> = account.groups.iter().map(|gid| gid.as_raw()).collect();
        assert_eq!(groups, [1001, 27, 44]);
    }

    #[test]
    fn fills_in_what_is_empty() {
        let account = find_in(PASSWD, GROUP, "bare").unwrap();
        assert_eq!((account.home.as_str(), account.shell.as_str()), ("/", "/bin/sh"));
    }

    #[test]
    fn refuses_what_is_not_there_or_not_a_user() {
        for name in ["nobody", "", "broken line", "us", "huge", "user:x"] {
            assert_eq!(find_in(PASSWD, GROUP, name), None, "{name}");
        }
    }
}
