//! The apps that can be installed: names for sets of Debian packages.
//!
//! Packages are those of the guest's release, installed without what they only recommend; what an app needs to be of
//! use is named here.

use roost_api::{ApiError, CatalogApp};

/// The most that one request selects.
const MOST_APPS: usize = 32;

#[derive(Debug)]
pub(crate) struct Entry {
    id: &'static str,
    name: &'static str,
    description: &'static str,
    category: &'static str,
    pub(crate) packages: &'static [&'static str],
}

const fn entry(
    id: &'static str,
    name: &'static str,
    category: &'static str,
    description: &'static str,
    packages: &'static [&'static str],
) -> Entry {
    Entry { id, name, description, category, packages }
}

const INTERNET: &str = "Internet";
const OFFICE: &str = "Office";
const GRAPHICS: &str = "Graphics";
const MULTIMEDIA: &str = "Multimedia";
const DEVELOPMENT: &str = "Development";
const UTILITIES: &str = "Utilities";

/// By category, then name.
const CATALOG: &[Entry] = &[
    entry("chromium", "Chromium", INTERNET, "Web browser", &["chromium", "chromium-sandbox"]),
    entry("filezilla", "FileZilla", INTERNET, "Moves files over FTP and SFTP", &["filezilla"]),
    entry("firefox", "Firefox", INTERNET, "Web browser", &["firefox-esr"]),
    entry(
        "remmina",
        "Remmina",
        INTERNET,
        "Remote desktops over RDP, VNC and SSH",
        &["remmina", "remmina-plugin-rdp", "remmina-plugin-vnc"],
    ),
    entry("thunderbird", "Thunderbird", INTERNET, "Mail and calendar", &["thunderbird"]),
    entry(
        "libreoffice",
        "LibreOffice",
        OFFICE,
        "Texts, spreadsheets and presentations",
        &["libreoffice-calc", "libreoffice-gtk3", "libreoffice-impress", "libreoffice-writer"],
    ),
    entry("evince", "Evince", OFFICE, "Reads PDF and other documents", &["evince"]),
    entry("gimp", "GIMP", GRAPHICS, "Edits pictures", &["gimp"]),
    entry("inkscape", "Inkscape", GRAPHICS, "Draws vector graphics", &["inkscape"]),
    entry("audacity", "Audacity", MULTIMEDIA, "Edits sound", &["audacity"]),
    entry("vlc", "VLC", MULTIMEDIA, "Plays video and sound", &["vlc"]),
    entry("geany", "Geany", DEVELOPMENT, "Code editor with a file tree and a compiler's output", &["geany"]),
    entry("emacs", "Emacs", DEVELOPMENT, "Text editor", &["emacs-gtk"]),
    entry("vim", "Vim", DEVELOPMENT, "Text editor, with a window of its own", &["vim-gtk3"]),
    entry("thonny", "Thonny", DEVELOPMENT, "Python environment for beginners", &["thonny"]),
    entry("meld", "Meld", DEVELOPMENT, "Compares files and directories", &["meld"]),
    entry("gitg", "gitg", DEVELOPMENT, "Shows the history of git repositories", &["gitg"]),
    entry(
        "sqlitebrowser",
        "DB Browser for SQLite",
        DEVELOPMENT,
        "Looks into SQLite databases",
        &["sqlitebrowser"],
    ),
    entry(
        "build-tools",
        "Build tools",
        DEVELOPMENT,
        "C and C++ compilers, make, CMake and a debugger",
        &["build-essential", "cmake", "gdb", "pkg-config"],
    ),
    entry(
        "python",
        "Python tools",
        DEVELOPMENT,
        "pip, virtual environments and headers for Python",
        &["python3-dev", "python3-pip", "python3-venv"],
    ),
    entry("nodejs", "Node.js", DEVELOPMENT, "Node.js with npm", &["nodejs", "npm"]),
    entry("java", "Java", DEVELOPMENT, "Java compiler and runtime", &["default-jdk"]),
    entry("go", "Go", DEVELOPMENT, "Go compiler and tools", &["golang-go"]),
    entry("keepassxc", "KeePassXC", UTILITIES, "Keeps passwords", &["keepassxc-minimal"]),
    entry("galculator", "Calculator", UTILITIES, "Scientific calculator", &["galculator"]),
    entry("file-roller", "Archive manager", UTILITIES, "Opens and packs archives", &["file-roller"]),
    entry("htop", "htop", UTILITIES, "Shows what programs use, in a terminal", &["htop"]),
];

pub(crate) fn find(id: &str) -> Option<&'static Entry> {
    CATALOG.iter().find(|entry| entry.id == id)
}

pub(crate) fn all() -> Vec<CatalogApp> {
    let view = |entry: &Entry| CatalogApp {
        id: entry.id.to_owned(),
        name: entry.name.to_owned(),
        description: entry.description.to_owned(),
        category: entry.category.to_owned(),
        packages: entry.packages.iter().map(|package| (*package).to_owned()).collect(),
    };
    CATALOG.iter().map(view).collect()
}

/// What a request selects, each once.
pub(crate) fn check(field: &str, apps: Vec<String>) -> Result<Vec<String>, ApiError> {
    let mut selected = Vec::new();
    for app in apps {
        if find(&app).is_none() {
            let known: Vec<&str> = CATALOG.iter().map(|entry| entry.id).collect();
            let problem = format!("there is no app {app:?} in the catalogue; it has: {}", known.join(", "));
            return Err(ApiError::field(field, problem));
        }
        if !selected.contains(&app) {
            selected.push(app);
        }
    }
    if selected.len() > MOST_APPS {
        return Err(ApiError::field(field, format!("more than {MOST_APPS} apps")));
    }
    Ok(selected)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_catalogue_is_in_order() {
        let ids: BTreeSet<&str> = CATALOG.iter().map(|entry| entry.id).collect();
        assert_eq!(ids.len(), CATALOG.len(), "an id stands twice");
        assert!(CATALOG.iter().all(|entry| !entry.packages.is_empty() && !entry.description.is_empty()));
        for id in ["chromium", "geany", "libreoffice", "gimp", "vlc", "filezilla"] {
            assert!(find(id).is_some(), "{id}");
        }
    }

    #[test]
    fn a_selection_is_checked_whole_and_has_each_app_once() {
        let select = |apps: &[&str]| check("apps", apps.iter().map(|app| (*app).to_owned()).collect());
        assert_eq!(select(&["vlc", "gimp", "vlc"]).unwrap(), ["vlc", "gimp"]);
        let error = select(&["vlc", "nothing"]).unwrap_err();
        assert!(error.fields["apps"][0].contains("\"nothing\"") && error.fields["apps"][0].contains("geany"));
        assert!(select(&["VLC"]).is_err());
    }
}
