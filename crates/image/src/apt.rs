//! Where packages come from: the Debian mirror of this machine's own apt configuration.
//!
//! Third-party repositories often use Debian's suite names, so a source counts as Debian's only if nothing
//! contradicts that: it serves `main` of a suite Debian has, it is signed by Debian's keys (or does not say
//! by whose), and among several the one whose address ends in `debian` wins. mmdebstrap then verifies the
//! signature with Debian's keys; a wrong choice fails, it cannot slip in.

use std::fs;

use camino::{Utf8Path, Utf8PathBuf};

use crate::{
    command::{command, run},
    error::{ImageError, OnFile},
};

/// Debian's suite in every image.
pub(crate) const SUITE: &str = "trixie";
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
pub(crate) const DIRECTORY: &str = "/etc/apt";

/// Names under which Debian's own archive is listed in a source, at any age of the machine.
const RELEASES: [&str; 12] = [
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
    "sid",
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirrors {
    pub(crate) main: String,
    pub(crate) security: Option<String>,
}

impl Mirrors {
    /// In apt's deb822 form, for the build and for the guest alike.
    pub(crate) fn sources(&self) -> String {
        let stanza = |uri: &str, suites: &str| {
            format!("Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {KEYRING}\n")
        };
        let mut text = stanza(&self.main, &format!("{SUITE} {SUITE}-updates"));
        if let Some(security) = &self.security {
            text.push('\n');
            text.push_str(&stanza(security, &format!("{SUITE}-security")));
        }
        text
    }
}

/// One `deb` source as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
}

/// The mirrors apt's configuration in `directory` names, if it names Debian's.
pub(crate) fn mirrors(directory: &Utf8Path) -> Result<Option<Mirrors>, ImageError> {
    let mut sources = Vec::new();
    for file in source_files(directory)? {
        let text = fs::read_to_string(&file).on("read", &file)?;
        match file.extension() {
            Some("sources") => sources.extend(parse_deb822(&text)),
            _ => sources.extend(text.lines().filter_map(parse_line)),
        }
    }
    for source in &mut sources {
        source.uris = source.uris.iter().filter_map(|uri| fetchable(uri)).collect();
    }
    Ok(choose(&sources))
}

fn source_files(directory: &Utf8Path) -> Result<Vec<Utf8PathBuf>, ImageError> {
    let mut files = Vec::new();
    let parts = directory.join("sources.list.d");
    if parts.is_dir() {
        for entry in parts.read_dir_utf8().on("list", &parts)? {
            let path = entry.on("list", &parts)?.into_path();
            if matches!(path.extension(), Some("list" | "sources")) {
                files.push(path);
            }
        }
    }
    files.sort();
    let single = directory.join("sources.list");
    if single.is_file() {
        files.insert(0, single);
    }
    Ok(files)
}

/// `deb [options] uri suite component...`
fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let mut rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let mut source = Source::default();
    if let Some(bracket) = rest.strip_prefix('[') {
        let (options, after) = bracket.split_once(']')?;
        rest = after;
        for option in options.split_whitespace() {
            if let Some(keyring) = option.strip_prefix("signed-by=") {
                source.signed_by = Some(keyring.to_owned());
            }
        }
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    source.uris = vec![words.next()?];
    source.suites = vec![words.next()?];
    source.components = words.collect();
    Some(source)
}

fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(from_fields(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn from_fields(fields: &[(String, String)]) -> Option<Source> {
    let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let words =
        |name: &str| field(name).unwrap_or("").split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    if matches!(field("enabled"), Some("no" | "false" | "0" | "off"))
        || !words("types").iter().any(|t| t == "deb")
    {
        return None;
    }
    Some(Source {
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
        signed_by: field("signed-by").map(str::to_owned),
    })
}

/// An address the guest can use too. Debian's cloud images keep theirs in a file (`mirror+file:`), of which
/// the first line is the preferred mirror.
fn fetchable(uri: &str) -> Option<String> {
    if let Some(path) = uri.strip_prefix("mirror+file:") {
        let path = format!("/{}", path.trim_start_matches('/'));
        let list = fs::read_to_string(path).ok()?;
        let first = list.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))?;
        return fetchable(first.split_whitespace().next()?);
    }
    let plain = uri.starts_with("http://") || uri.starts_with("https://");
    plain.then(|| uri.trim_end_matches('/').to_owned())
}

fn choose(sources: &[Source]) -> Option<Mirrors> {
    let pick = |is_wanted: fn(&str) -> bool, name: &str| {
        sources
            .iter()
            .filter(|source| source.components.iter().any(|component| component == "main"))
            .filter(|source| source.suites.iter().any(|suite| is_wanted(suite)))
            .filter_map(|source| Some((trust(source)?, source)))
            .flat_map(|(trust, source)| source.uris.iter().map(move |uri| (trust, uri)))
            .max_by_key(|(trust, uri)| (*trust, uri.rsplit('/').next() == Some(name), uri.contains("debian")))
            .filter(|(trust, uri)| *trust == Trust::DebianKeys || uri.contains("debian"))
            .map(|(_, uri)| uri.clone())
    };
    let main = pick(is_release, "debian")?;
    Some(Mirrors { main, security: pick(is_security, "debian-security") })
}

fn is_release(suite: &str) -> bool {
    RELEASES.contains(&suite)
}

fn is_security(suite: &str) -> bool {
    let release = suite.strip_suffix("-security").or_else(|| suite.strip_suffix("/updates"));
    release.is_some_and(is_release)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trust {
    Unstated,
    DebianKeys,
}

/// `None`: the source names keys that are not Debian's.
fn trust(source: &Source) -> Option<Trust> {
    match &source.signed_by {
        None => Some(Trust::Unstated),
        Some(keys) if keys.contains("debian-archive") => Some(Trust::DebianKeys),
        Some(_) => None,
    }
}

/// Settings of this machine's apt without which its mirror may not be usable.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Settings {
    /// Needed while building only: proxies and certificates as seen from this machine.
    pub(crate) building: Vec<String>,
    /// True of the mirror itself (a frozen one has old dates), so the guest needs them as well.
    pub(crate) guest: Vec<String>,
}

pub(crate) fn settings() -> Result<Settings, ImageError> {
    let mut dump = command("apt-config");
    dump.arg("dump");
    Ok(parse_settings(&String::from_utf8_lossy(&run(dump)?)))
}

fn parse_settings(dump: &str) -> Settings {
    const BUILDING: [&str; 5] = [
        "acquire::http::proxy",
        "acquire::https::proxy",
        "acquire::https::cainfo",
        "acquire::https::verify-peer",
        "acquire::https::verify-host",
    ];
    const GUEST: [&str; 2] = ["acquire::check-valid-until", "acquire::check-date"];
    let mut settings = Settings::default();
    for line in dump.lines() {
        let Some((name, value)) = line.split_once(' ') else { continue };
        let name = name.to_ascii_lowercase();
        if value == "\"\";" {
            continue;
        }
        // A proxy may be set per host: `Acquire::http::Proxy::mirror.example`.
        if BUILDING
            .iter()
            .any(|key| name == *key || name.strip_prefix(key).is_some_and(|r| r.starts_with("::")))
        {
            settings.building.push(line.to_owned());
        } else if GUEST.contains(&name.as_str()) {
            settings.guest.push(line.to_owned());
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Option<Mirrors> {
        choose(&text.lines().filter_map(parse_line).collect::<Vec<_>>())
    }

    fn mirror(main: &str, security: Option<&str>) -> Option<Mirrors> {
        Some(Mirrors { main: main.into(), security: security.map(Into::into) })
    }

    #[test]
    fn one_line_sources() {
        let text = "
            # deb http://commented.example/debian bookworm main
            deb http://m.example/debian bookworm main contrib # comment
            deb-src http://src.example/debian bookworm main
            deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://s.example/debian-security bookworm-security main
            deb http://m.example/debian bookworm-updates main";
        let text: String = text.lines().map(|line| format!("{}\n", line.trim())).collect();
        assert_eq!(lines(&text), mirror("http://m.example/debian", Some("http://s.example/debian-security")));
    }

    #[test]
    fn deb822_sources() {
        let text = "Types: deb deb-src
URIs: http://m.example/debian
Suites: trixie
 trixie-updates
# a comment inside
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: trixie
Components: main

Types: deb
URIs: http://m.example/debian-security
Suites: trixie-security
Components: main";
        assert_eq!(
            choose(&parse_deb822(text)),
            mirror("http://m.example/debian", Some("http://m.example/debian-security"))
        );
    }

    #[test]
    fn other_repositories_are_not_debian() {
        for foreign in [
            "deb https://packages.example/apt cloud-sdk-bookworm main",
            "deb https://download.example/linux/debian bookworm stable",
            "deb [signed-by=/etc/apt/keyrings/x.gpg] https://packages.example/debian bookworm main",
            "deb http://archive.example/ubuntu noble main",
            "deb https://tool.example/repo stable main",
            "",
        ] {
            assert_eq!(lines(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_archive_wins_over_repositories_that_look_like_it() {
        let text = "deb https://packages.example/debian/12/prod bookworm main\n\
                    deb http://m.example/debian bookworm main\n\
                    deb https://zzz.example/debian-extras bookworm main\n";
        assert_eq!(lines(text), mirror("http://m.example/debian", None));
    }

    #[test]
    fn a_frozen_mirror_is_taken_as_it_is() {
        let text = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://s.example/archive/debian/20260101T000000Z bookworm main";
        assert_eq!(lines(text), mirror("http://s.example/archive/debian/20260101T000000Z", None));
    }

    #[test]
    fn files_of_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let directory = Utf8Path::from_path(directory.path()).unwrap();
        assert_eq!(mirrors(directory).unwrap(), None);
        let parts = directory.join("sources.list.d");
        fs::create_dir(&parts).unwrap();
        fs::write(directory.join("mirrors.list"), "# ours\nhttps://m.example/debian/ priority:1\n").unwrap();
        let uri = format!("mirror+file://{directory}/mirrors.list");
        fs::write(
            parts.join("debian.sources"),
            format!("Types: deb\nURIs: {uri}\nSuites: bookworm\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"),
        )
        .unwrap();
        fs::write(parts.join("old.list.disabled"), "deb http://wrong.example/debian bookworm main\n")
            .unwrap();
        fs::write(directory.join("sources.list"), "deb cdrom:[Debian]/ bookworm main\n").unwrap();
        assert_eq!(mirrors(directory).unwrap(), mirror("https://m.example/debian", None));
    }

    #[test]
    fn settings_are_told_apart() {
        let dump = "Acquire \"\";\nAcquire::http \"\";\nAcquire::http::Proxy \"http://p.example:3142\";\n\
                    Acquire::http::Proxy::m.example \"DIRECT\";\nAcquire::https::Proxy \"\";\n\
                    Acquire::Check-Valid-Until \"false\";\nAPT::Install-Recommends \"1\";\n";
        assert_eq!(
            parse_settings(dump),
            Settings {
                building: vec![
                    "Acquire::http::Proxy \"http://p.example:3142\";".into(),
                    "Acquire::http::Proxy::m.example \"DIRECT\";".into(),
                ],
                guest: vec!["Acquire::Check-Valid-Until \"false\";".into()],
            }
        );
    }
}
