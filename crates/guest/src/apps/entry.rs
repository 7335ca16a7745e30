//! Desktop entries: the files from which menus know programs.
//!
//! Of the Desktop Entry Specification this reads what a menu of this desktop needs: which entries it shows, their
//! names in English, and their command lines. Files may be anything: what cannot be read is no app.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use roost_guest_proto::v1::App;

use super::launch::is_program;

/// What the desktop calls itself, for entries that are only for some desktops.
const DESKTOP: &str = "XFCE";
/// No entry is larger; a file that is would only waste memory.
const LARGEST: u64 = 256 * 1024;
/// Directories below `applications` are part of an id. Nobody nests them deeper.
const DEEPEST: usize = 4;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: String,
    name: String,
    argv: Vec<String>,
    icon: String,
    categories: Vec<String>,
    needs_terminal: bool,
}

impl Entry {
    pub(super) fn into_app(self) -> App {
        let Self { id, name, argv, icon, categories, needs_terminal: _ } = self;
        App { id, name, exec: quoted(&argv), icon, categories }
    }

    /// What to run for it.
    pub(super) fn command_line(&self) -> Vec<String> {
        let terminal: &[&str] = if self.needs_terminal { &["xfce4-terminal", "-x"] } else { &[] };
        terminal.iter().map(|word| (*word).to_owned()).chain(self.argv.iter().cloned()).collect()
    }
}

/// Every entry that the menu shows, by name. An entry in the user's home goes before one of the system.
pub(super) fn all(home: &str) -> Vec<Entry> {
    let mut entries = BTreeMap::new();
    for directory in directories(home) {
        collect(&directory, "", DEEPEST, &mut entries);
    }
    let mut shown: Vec<Entry> = entries.into_values().flatten().collect();
    shown.sort_by(|a, b| (a.name.to_lowercase(), &a.id).cmp(&(b.name.to_lowercase(), &b.id)));
    shown
}

fn directories(home: &str) -> Vec<PathBuf> {
    let system = std::env::var("XDG_DATA_DIRS").ok().filter(|dirs| !dirs.is_empty());
    let system = system.unwrap_or_else(|| "/usr/local/share:/usr/share".to_owned());
    let own = format!("{home}/.local/share");
    let directories = std::iter::once(own.as_str()).chain(system.split(':'));
    directories.map(|directory| Path::new(directory).join("applications")).collect()
}

/// Adds what `directory` has and is not there yet. An entry that is not shown hides those of the same id.
fn collect(directory: &Path, prefix: &str, deepest: usize, entries: &mut BTreeMap<String, Option<Entry>>) {
    let Ok(files) = fs::read_dir(directory) else { return };
    for file in files.flatten() {
        let path = file.path();
        let Ok(name) = file.file_name().into_string() else { continue };
        if let Some(stem) = name.strip_suffix(".desktop") {
            let id = format!("{prefix}{stem}");
            entries.entry(id).or_insert_with_key(|id| read(id, &path));
        } else if deepest > 1 && path.is_dir() {
            collect(&path, &format!("{prefix}{name}-"), deepest - 1, entries);
        }
    }
}

fn read(id: &str, path: &Path) -> Option<Entry> {
    if fs::metadata(path).ok()?.len() > LARGEST {
        return None;
    }
    parse(id, path, &String::from_utf8_lossy(&fs::read(path).ok()?))
}

/// The entry in `text`; `None` for what no menu shows.
fn parse(id: &str, path: &Path, text: &str) -> Option<Entry> {
    let keys = keys(text);
    let text = |key: &str| keys.get(key).map(|value| unescaped(value));
    let is_true = |key: &str| keys.get(key).is_some_and(|value| *value == "true");
    let list = |key: &str| {
        let value = keys.get(key).copied().unwrap_or_default();
        value.split(';').filter(|item| !item.is_empty()).map(unescaped).collect::<Vec<_>>()
    };
    let is_for_others =
        keys.contains_key("OnlyShowIn") && !list("OnlyShowIn").iter().any(|desktop| desktop == DESKTOP);
    let hidden = is_true("Hidden") || is_true("NoDisplay") || is_for_others;
    if hidden || list("NotShowIn").iter().any(|desktop| desktop == DESKTOP) {
        return None;
    }
    if keys.get("Type") != Some(&"Application")
        || text("TryExec").is_some_and(|program| !is_program(&program))
    {
        return None;
    }
    let name = text("Name").filter(|name| !name.is_empty())?;
    let argv = command_line(&text("Exec")?, &name, path)?;
    Some(Entry {
        id: id.to_owned(),
        argv,
        icon: text("Icon").unwrap_or_default(),
        categories: list("Categories"),
        needs_terminal: is_true("Terminal"),
        name,
    })
}

/// The keys of the main group, without translations.
fn keys(text: &str) -> HashMap<&str, &str> {
    let mut is_main = false;
    let mut keys = HashMap::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            is_main = line == "[Desktop Entry]";
        } else if is_main
            && !line.starts_with('#')
            && let Some((key, value)) = line.split_once('=')
        {
            keys.entry(key.trim_end()).or_insert(value.trim_start());
        }
    }
    keys
}

fn unescaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let mut rest = value.chars();
    while let Some(char) = rest.next() {
        match (char, if char == '\\' { rest.next() } else { None }) {
            ('\\', Some('s')) => text.push(' '),
            ('\\', Some('n')) => text.push('\n'),
            ('\\', Some('t')) => text.push('\t'),
            ('\\', Some('r')) => text.push('\r'),
            ('\\', Some(';')) => text.push(';'),
            ('\\', Some('\\')) => text.push('\\'),
            ('\\', Some(other)) => text.extend(['\\', other]),
            (char, _) => text.push(char),
        }
    }
    text
}

/// The words of `Exec`, started without a file. `None` where there is no program.
fn command_line(exec: &str, name: &str, path: &Path) -> Option<Vec<String>> {
    let mut argv = Vec::new();
    for (word, is_quoted) in words(exec)? {
        if is_quoted {
            argv.push(word);
            continue;
        }
        match word.as_str() {
            "%f" | "%F" | "%u" | "%U" | "%d" | "%D" | "%n" | "%N" | "%v" | "%m" | "%i" => {}
            "%c" => argv.push(name.to_owned()),
            "%k" => argv.push(path.display().to_string()),
            _ => argv.push(without_codes(&word)),
        }
    }
    (!argv.is_empty()).then_some(argv)
}

/// Words, and whether quotes held them. `None`: a quote is never closed.
fn words(exec: &str) -> Option<Vec<(String, bool)>> {
    let mut words = Vec::new();
    let mut word: Option<(String, bool)> = None;
    let mut rest = exec.chars();
    while let Some(char) = rest.next() {
        match char {
            '"' => {
                let (text, is_quoted) = word.get_or_insert_default();
                *is_quoted = true;
                loop {
                    match rest.next()? {
                        '"' => break,
                        '\\' => text.push(rest.next()?),
                        char => text.push(char),
                    }
                }
            }
            ' ' | '\t' | '\n' => words.extend(word.take()),
            char => word.get_or_insert_default().0.push(char),
        }
    }
    words.extend(word);
    Some(words)
}

fn without_codes(word: &str) -> String {
    let mut text = String::with_capacity(word.len());
    let mut rest = word.chars();
    while let Some(char) = rest.next() {
        match char {
            '%' => text.extend(rest.next().filter(|code| *code == '%')),
            char => text.push(char),
        }
    }
    text
}

/// As a person would write it.
fn quoted(argv: &[String]) -> String {
    let is_plain =
        |word: &str| !word.is_empty() && !word.contains([' ', '\t', '\n', '"', '\\', '$', '`', '\'']);
    let word = |word: &String| {
        if is_plain(word) { word.clone() } else { format!("'{}'", word.replace('\'', r"'\''")) }
    };
    argv.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// The entry somebody means: by id, by name, or by the program it runs.
pub(super) fn find<'a>(entries: &'a [Entry], wanted: &str) -> Option<&'a Entry> {
    let wanted = wanted.strip_suffix(".desktop").unwrap_or(wanted);
    let is_same = |text: &str| text.eq_ignore_ascii_case(wanted);
    let program = |entry: &Entry| {
        let first = entry.argv.first().map(String::as_str).unwrap_or_default();
        first.rsplit('/').next().is_some_and(is_same)
    };
    let by_id = || entries.iter().find(|entry| is_same(&entry.id));
    let by_name = || entries.iter().find(|entry| is_same(&entry.name));
    let by_program = || entries.iter().find(|entry| program(entry));
    entries.iter().find(|entry| entry.id == wanted).or_else(by_id).or_else(by_name).or_else(by_program)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDITOR: &str = "# a comment\n[Desktop Entry]\nType=Application\nName=Text Editor\nName[de]=Texteditor\n\
        Exec=\"/opt/my editor/edit\" --title %c -- %F\nIcon=edit\nCategories=Utility;TextEditor;\n\
        [Desktop Action new]\nName=New\nExec=other\n";

    fn parsed(text: &str) -> Option<Entry> {
        parse("x", Path::new("/x.desktop"), text)
    }

    fn with(lines: &str) -> Option<Entry> {
        parsed(&format!("[Desktop Entry]\nType=Application\nName=N\nExec=sh\n{lines}\n"))
    }

    #[test]
    fn an_entry_is_read_as_a_menu_reads_it() {
        let entry = parsed(EDITOR).unwrap();
        assert_eq!(entry.command_line(), ["/opt/my editor/edit", "--title", "Text Editor", "--"]);
        let app = entry.into_app();
        assert_eq!((app.id.as_str(), app.name.as_str(), app.icon.as_str()), ("x", "Text Editor", "edit"));
        assert_eq!(app.exec, "'/opt/my editor/edit' --title 'Text Editor' --");
        assert_eq!(app.categories, ["Utility", "TextEditor"]);
    }

    #[test]
    fn what_no_menu_shows_is_no_app() {
        assert!(with("").is_some());
        for lines in [
            "NoDisplay=true",
            "Hidden=true",
            "OnlyShowIn=GNOME;KDE;",
            "NotShowIn=XFCE;",
            "TryExec=no-such-program-anywhere",
        ] {
            assert_eq!(with(lines), None, "{lines}");
        }
        assert!(with("OnlyShowIn=GNOME;XFCE;").is_some());
        assert!(with("TryExec=sh").is_some());
        for text in [
            "",
            "nonsense",
            "[Desktop Entry]\nType=Link\nName=N\nExec=sh\n",
            "[Desktop Entry]\nType=Application\nName=N\n",
            "[Desktop Entry]\nType=Application\nExec=sh\n",
            "[Desktop Entry]\nType=Application\nName=N\nExec=\"open\n",
            "[Desktop Entry]\nType=Application\nName=N\nExec=%U\n",
        ] {
            assert_eq!(parsed(text), None, "{text:?}");
        }
    }

    #[test]
    fn field_codes_go_and_quotes_hold() {
        let cases: [(&str, &[&str]); 6] = [
            ("a %U b", &["a", "b"]),
            ("a 100%%", &["a", "100%"]),
            ("a --file=%f", &["a", "--file="]),
            (r#"a "%f""#, &["a", "%f"]),
            (r#"a "b \"c\" \$d""#, &["a", r#"b "c" $d"#]),
            (r#"a"b c"d """#, &["ab cd", ""]),
        ];
        for (exec, expected) in cases {
            assert_eq!(command_line(exec, "N", Path::new("/x")).unwrap(), expected, "{exec}");
        }
        assert_eq!(unescaped(r"a\sb\\c\nd\q"), "a b\\c\nd\\q");
    }

    #[test]
    fn terminal_programs_get_a_terminal() {
        assert_eq!(with("Terminal=true").unwrap().command_line(), ["xfce4-terminal", "-x", "sh"]);
    }

    #[test]
    fn the_users_entries_hide_the_systems() {
        let home = tempfile::tempdir().unwrap();
        let own = home.path().join(".local/share/applications");
        fs::create_dir_all(own.join("kde")).unwrap();
        let entry = |name: &str| format!("[Desktop Entry]\nType=Application\nName={name}\nExec=sh\n");
        fs::write(own.join("zulu.desktop"), entry("Zulu")).unwrap();
        fs::write(own.join("kde/alpha.desktop"), entry("alpha")).unwrap();
        fs::write(own.join("hidden.desktop"), entry("Hidden") + "Hidden=true\n").unwrap();
        fs::write(own.join("other.txt"), entry("Other")).unwrap();
        let system = home.path().join("system");
        fs::create_dir_all(&system).unwrap();
        fs::write(system.join("zulu.desktop"), entry("Old")).unwrap();
        fs::write(system.join("hidden.desktop"), entry("Hidden")).unwrap();
        let mut entries = BTreeMap::new();
        collect(&own, "", DEEPEST, &mut entries);
        collect(&system, "", DEEPEST, &mut entries);
        let found: Vec<&str> = entries.values().flatten().map(|entry| entry.name.as_str()).collect();
        assert_eq!(found, ["alpha", "Zulu"]);
        assert!(entries.contains_key("kde-alpha"));
    }

    #[test]
    fn apps_are_found_by_what_people_call_them() {
        let entry = |id: &str, name: &str, program: &str| Entry {
            id: id.to_owned(),
            name: name.to_owned(),
            argv: vec![program.to_owned()],
            icon: String::new(),
            categories: Vec::new(),
            needs_terminal: false,
        };
        let entries = [entry("org.x.editor", "Editor", "/usr/bin/xedit"), entry("Editor", "Other", "other")];
        let found = |wanted| find(&entries, wanted).map(|entry| entry.id.as_str());
        assert_eq!(found("org.x.editor.desktop"), Some("org.x.editor"));
        assert_eq!(found("editor"), Some("Editor"));
        assert_eq!(found("xedit"), Some("org.x.editor"));
        assert_eq!(found("OTHER"), Some("Editor"));
        assert_eq!(found("nothing"), None);
    }
}
