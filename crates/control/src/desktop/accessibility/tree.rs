//! From what programs tell of their widgets to the elements of an answer. Nothing here waits or asks.
//!
//! Programs tell whatever they like: of parents that are their own children, of siblings without end. So a tree begins
//! at a program's root and goes through each element once, and a [`View`] says where it ends.

use std::collections::HashMap;

use roost_api::{AccessibleNode, Bounds, ScreenRegion};

use super::atspi::{CacheItem, Interfaces, Reference, State, States, is_control, is_layout, role_name};

/// Of a text or a name in a tree. A page has more of them than anybody reads at once.
const LONGEST_TEXT: usize = 2000;
const LONGEST_NAME: usize = 500;
/// Of a text or a name in a line.
const LONGEST_IN_LINE: usize = 200;
/// Deeper than programs nest, and not too deep for readers of JSON.
const DEEPEST: u32 = 60;
/// In a text, another element stands in the place of this character.
const EMBEDDED: char = '\u{fffc}';

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) at: Reference,
    pub(super) parent: Reference,
    pub(super) index: i32,
    /// As the program tells; -1 where it does not.
    pub(super) child_count: i32,
    pub(super) interfaces: Interfaces,
    pub(super) name: String,
    pub(super) role: u32,
    pub(super) description: String,
    pub(super) states: States,
}

impl Element {
    pub(super) fn is_showing(&self) -> bool {
        self.states.has(State::Showing)
    }

    /// Whether it is there to be pressed, filled in or chosen from.
    fn is_interactive(&self) -> bool {
        let can_act = self.interfaces.action && self.states.has(State::Focusable);
        is_control(self.role) || can_act || self.states.has(State::Editable)
    }

    /// Whether there is a text to ask for: labels have theirs as a name.
    pub(super) fn has_own_text(&self) -> bool {
        self.interfaces.text && (self.name.is_empty() || self.states.has(State::Editable))
    }
}

impl From<CacheItem> for Element {
    fn from(item: CacheItem) -> Self {
        let (at, _app, parent, index, child_count, interfaces, name, role, description, states) = item;
        Self {
            at: at.into(),
            parent: parent.into(),
            index,
            child_count,
            interfaces: Interfaces::new(&interfaces),
            name,
            role,
            description,
            states: States::new(&states),
        }
    }
}

/// All elements that are known of.
#[derive(Debug, Default)]
pub(super) struct Scene {
    elements: Vec<Element>,
    places: HashMap<Reference, usize>,
}

impl Scene {
    /// What was told last of an element is what counts.
    pub(super) fn add(&mut self, element: Element) {
        match self.places.get(&element.at) {
            Some(place) => self.elements[*place] = element,
            None => {
                self.places.insert(element.at.clone(), self.elements.len());
                self.elements.push(element);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.elements.len()
    }

    pub(super) fn get(&self, place: usize) -> &Element {
        &self.elements[place]
    }

    pub(super) fn place(&self, at: &Reference) -> Option<usize> {
        self.places.get(at).copied()
    }

    /// Who is in whom, in order. Nobody is in another program's element: it would pass for that program's.
    pub(super) fn children(&self) -> Children {
        let mut children = vec![Vec::new(); self.elements.len()];
        for (place, element) in self.elements.iter().enumerate() {
            if let Some(parent) = self.place(&element.parent)
                && element.parent.connection == element.at.connection
            {
                children[parent].push(place);
            }
        }
        for list in &mut children {
            list.sort_by_key(|place| self.elements[*place].index);
        }
        Children(children)
    }
}

#[derive(Debug)]
pub(super) struct Children(Vec<Vec<usize>>);

impl Children {
    pub(super) fn of(&self, place: usize) -> &[usize] {
        &self.0[place]
    }
}

/// A window's own element, and what the window manager says of it.
#[derive(Debug, Clone)]
pub(super) struct Top {
    pub(super) place: usize,
    pub(super) app: String,
    pub(super) window: Option<String>,
}

/// What is wanted.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) visible: bool,
    pub(super) interactive: bool,
    pub(super) role: Option<u32>,
    /// In small letters.
    pub(super) name: Option<String>,
    pub(super) depth: Option<u32>,
    pub(super) limit: usize,
    /// Whether windows are there although they are not what is looked for.
    pub(super) keeps_windows: bool,
}

impl View {
    fn wants(&self, element: &Element) -> bool {
        (!self.interactive || element.is_interactive())
            && self.role.is_none_or(|role| role == element.role)
            && self.name.as_deref().is_none_or(|name| element.name.to_lowercase().contains(name))
    }
}

/// One element of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) place: usize,
    /// Levels below the desktop, of elements that were chosen.
    pub(super) depth: u32,
    pub(super) top: usize,
}

#[derive(Debug, Default)]
pub(super) struct Choice {
    /// In the order of the tree: who is deeper than the one before is in it.
    pub(super) chosen: Vec<Chosen>,
    pub(super) truncated: bool,
}

/// The elements of an answer, as far as the limit goes.
pub(super) fn choose(scene: &Scene, children: &Children, tops: &[Top], view: &View) -> Choice {
    let mut choice = Choice::default();
    let mut seen = vec![false; scene.len()];
    // With the depth that an element has if it is chosen, and the real one.
    let mut left: Vec<(usize, u32, u32, usize)> =
        tops.iter().enumerate().rev().map(|(top, at)| (at.place, 1, 1, top)).collect();
    while let Some((place, depth, real, top)) = left.pop() {
        if std::mem::replace(&mut seen[place], true) {
            continue;
        }
        let element = scene.get(place);
        if view.visible && !element.is_showing() {
            continue;
        }
        if view.depth.is_some_and(|deepest| depth > deepest) {
            continue;
        }
        if real > DEEPEST {
            choice.truncated = true;
            continue;
        }
        let is_chosen = view.wants(element) || (view.keeps_windows && real == 1);
        if is_chosen {
            if choice.chosen.len() == view.limit {
                choice.truncated = true;
                return choice;
            }
            choice.chosen.push(Chosen { place, depth, top });
        }
        let below = if is_chosen { depth + 1 } else { depth };
        left.extend(children.of(place).iter().rev().map(|child| (*child, below, real + 1, top)));
    }
    choice
}

/// What only the program itself can say of an element.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Details {
    pub(super) bounds: Option<Bounds>,
    pub(super) text: Option<String>,
    pub(super) value: Option<f64>,
}

/// The elements as nodes without children, each with its depth.
pub(super) fn nodes(
    scene: &Scene,
    tops: &[Top],
    choice: &Choice,
    details: Vec<Details>,
) -> Vec<(u32, AccessibleNode)> {
    let node = |(chosen, details): (&Chosen, Details)| {
        let element = scene.get(chosen.place);
        let top = Some(&tops[chosen.top]).filter(|top| top.place == chosen.place);
        let node = AccessibleNode {
            id: element.at.to_string(),
            role: role_name(element.role).to_owned(),
            name: cut(&element.name, LONGEST_NAME).to_owned(),
            description: Some(cut(&element.description, LONGEST_NAME))
                .filter(|text| !text.is_empty() && *text != element.name)
                .map(str::to_owned),
            bounds: details.bounds,
            states: element.states.names().map(str::to_owned).collect(),
            text: details.text.as_deref().and_then(|text| own_text(text, &element.name)),
            value: details.value.filter(|value| value.is_finite()),
            app: top.map(|top| top.app.clone()),
            window: top.and_then(|top| top.window.clone()),
            children: Vec::new(),
        };
        (chosen.depth, node)
    };
    choice.chosen.iter().zip(details).map(node).collect()
}

/// Each node in the one it belongs to. Of those without a place on the screen, `screen` lets none through that has
/// nothing in it.
pub(super) fn nest(nodes: Vec<(u32, AccessibleNode)>, screen: Option<ScreenRegion>) -> Vec<AccessibleNode> {
    // Those whose children are still coming, each with its depth.
    let mut open: Vec<(u32, AccessibleNode)> = Vec::new();
    let mut whole = Vec::new();
    let mut close = |open: &mut Vec<(u32, AccessibleNode)>| {
        let Some((_, node)) = open.pop() else { return };
        let is_seen = |screen: &ScreenRegion| node.bounds.is_some_and(|bounds| bounds.meets(screen));
        if node.children.is_empty() && screen.as_ref().is_some_and(|screen| !is_seen(screen)) {
            return;
        }
        match open.last_mut() {
            Some((_, parent)) => parent.children.push(node),
            None => whole.push(node),
        }
    };
    for (depth, node) in nodes {
        while open.last().is_some_and(|(other, _)| *other >= depth) {
            close(&mut open);
        }
        open.push((depth, node));
    }
    while !open.is_empty() {
        close(&mut open);
    }
    whole
}

/// The nodes as lines, and how many.
pub(super) fn lines(nodes: &[AccessibleNode]) -> (String, usize) {
    let mut text = String::new();
    let mut count = 0;
    let mut left: Vec<(&AccessibleNode, usize)> = nodes.iter().rev().map(|node| (node, 0)).collect();
    while let Some((node, depth)) = left.pop() {
        let says_something = !node.name.is_empty() || node.text.is_some() || node.value.is_some();
        let is_layout = super::atspi::role_number(&node.role).is_some_and(is_layout);
        let is_written = says_something || !is_layout;
        if is_written {
            count += 1;
            write_line(&mut text, node, depth);
        }
        let below = if is_written { depth + 1 } else { depth };
        left.extend(node.children.iter().rev().map(|child| (child, below)));
    }
    (text, count)
}

fn write_line(text: &mut String, node: &AccessibleNode, depth: usize) {
    text.extend(std::iter::repeat_n(' ', depth));
    text.push_str(&node.id);
    text.push(' ');
    text.push_str(&node.role);
    if !node.name.is_empty() {
        text.push(' ');
        text.push_str(&quoted(&node.name));
    }
    let has = |name: &str| node.states.iter().any(|state| state == name);
    let mut states: Vec<&str> = node.states.iter().map(String::as_str).filter(|state| tells(state)).collect();
    if super::atspi::role_number(&node.role).is_some_and(is_control) && !has("sensitive") && !has("enabled") {
        states.push("disabled");
    }
    if !states.is_empty() {
        text.push_str(" [");
        text.push_str(&states.join(","));
        text.push(']');
    }
    if let Some(Bounds { x, y, width, height }) = node.bounds {
        text.push_str(&format!(" {x},{y} {width}x{height}"));
    }
    if let Some(window) = &node.window {
        text.push_str(&format!(" window {window}"));
    }
    if let Some(own) = &node.text {
        text.push_str(&format!(" = {}", quoted(own)));
    } else if let Some(value) = node.value {
        text.push_str(&format!(" = {value}"));
    }
    text.push('\n');
}

/// Whether a state says what its role does not.
fn tells(state: &str) -> bool {
    matches!(
        state,
        "active"
            | "busy"
            | "checked"
            | "collapsed"
            | "editable"
            | "expanded"
            | "focused"
            | "has-popup"
            | "iconified"
            | "indeterminate"
            | "invalid-entry"
            | "modal"
            | "pressed"
            | "read-only"
            | "required"
            | "selected"
    )
}

/// On one line, with its quotes.
fn quoted(text: &str) -> String {
    let short = cut(text, LONGEST_IN_LINE);
    let mut quoted = serde_json::Value::from(short).to_string();
    if short.len() < text.len() {
        quoted.push('…');
    }
    quoted
}

/// At most so many characters.
fn cut(text: &str, longest: usize) -> &str {
    text.char_indices().nth(longest).map_or(text, |(end, _)| &text[..end])
}

/// The text without the places of other elements; `None` where nothing is left that the name does not say.
fn own_text(text: &str, name: &str) -> Option<String> {
    let own: String = text.chars().filter(|letter| *letter != EMBEDDED).take(LONGEST_TEXT).collect();
    let is_news = !own.trim().is_empty() && own != name;
    is_news.then_some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: u64 = 1 << State::Showing as u64 | 1 << State::Sensitive as u64;
    const BUTTON: u32 = 43;
    const PANEL: u32 = 39;
    const FRAME: u32 = 23;
    const ENTRY: u32 = 79;

    fn at(path: &str) -> Reference {
        Reference::new(":1.7", &format!("/org/a11y/atspi/accessible/{path}"))
    }

    fn element(path: &str, parent: &str, index: i32, role: u32, name: &str) -> Element {
        Element {
            at: at(path),
            parent: at(parent),
            index,
            child_count: 0,
            interfaces: Interfaces { component: true, ..Interfaces::default() },
            name: name.to_owned(),
            role,
            description: String::new(),
            states: States(SHOWN),
        }
    }

    fn scene(elements: impl IntoIterator<Item = Element>) -> Scene {
        let mut scene = Scene::default();
        elements.into_iter().for_each(|element| scene.add(element));
        scene
    }

    /// A window with a button, a closed menu with an item, and an entry in a panel; told in any order.
    fn editor() -> Scene {
        let mut menu = element("menu", "1", 1, 33, "File");
        menu.states = States(0);
        let mut entry = element("5", "4", 0, ENTRY, "");
        entry.states = States(SHOWN | 1 << State::Editable as u64);
        entry.interfaces.text = true;
        scene([
            entry,
            element("4", "1", 2, PANEL, ""),
            element("3", "menu", 0, 35, "Open"),
            menu,
            element("2", "1", 0, BUTTON, "Save as…"),
            element("1", "root", 0, FRAME, "Text"),
            element("root", "nobody", -1, 75, "Editor"),
        ])
    }

    fn view() -> View {
        View {
            visible: true,
            interactive: false,
            role: None,
            name: None,
            depth: None,
            limit: 1000,
            keeps_windows: true,
        }
    }

    fn top(scene: &Scene, path: &str) -> Vec<Top> {
        let place = scene.place(&at(path)).unwrap();
        vec![Top { place, app: "Editor".to_owned(), window: Some("0x2400003".to_owned()) }]
    }

    /// Ids with their depths, and whether there is more.
    fn chosen(scene: &Scene, view: &View) -> (Vec<(String, u32)>, bool) {
        let choice = choose(scene, &scene.children(), &top(scene, "1"), view);
        let ids = choice.chosen.iter().map(|one| {
            let id = scene.get(one.place).at.to_string();
            (id.trim_start_matches("7/").to_owned(), one.depth)
        });
        (ids.collect(), choice.truncated)
    }

    fn ids(scene: &Scene, view: &View) -> String {
        let (chosen, _) = chosen(scene, view);
        chosen.iter().map(|(id, depth)| format!("{id}:{depth}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_is_wanted_is_chosen_in_order() {
        let scene = editor();
        assert_eq!(ids(&scene, &view()), "1:1 2:2 4:2 5:3");
        assert_eq!(ids(&scene, &View { visible: false, ..view() }), "1:1 2:2 menu:2 3:3 4:2 5:3");
        // The panel is left out, and what is in it takes its place.
        assert_eq!(ids(&scene, &View { interactive: true, ..view() }), "1:1 2:2 5:2");
        assert_eq!(ids(&scene, &View { depth: Some(1), ..view() }), "1:1");
        assert_eq!(ids(&scene, &View { depth: Some(2), ..view() }), "1:1 2:2 4:2");
        let found = View { keeps_windows: false, ..view() };
        assert_eq!(ids(&scene, &View { role: Some(ENTRY), ..found.clone() }), "5:1");
        assert_eq!(ids(&scene, &View { name: Some("save".to_owned()), ..found.clone() }), "2:1");
        assert_eq!(ids(&scene, &View { name: Some("open".to_owned()), ..found.clone() }), "");
        let hidden = View { name: Some("open".to_owned()), visible: false, ..found };
        assert_eq!(ids(&scene, &hidden), "3:1");
    }

    #[test]
    fn limits_are_told_of() {
        let scene = editor();
        assert_eq!(
            chosen(&scene, &View { limit: 2, ..view() }),
            (vec![("1".to_owned(), 1), ("2".to_owned(), 2)], true)
        );
        assert!(!chosen(&scene, &View { limit: 4, ..view() }).1);
        // What the caller did not ask for is not missing.
        assert!(!chosen(&scene, &View { depth: Some(1), ..view() }).1);
        let chain =
            (1..200).map(|number| element(&(number + 1).to_string(), &number.to_string(), 0, PANEL, ""));
        let deep = self::scene(std::iter::once(element("1", "root", 0, FRAME, "")).chain(chain));
        let (chosen, truncated) = chosen(&deep, &view());
        assert_eq!((chosen.len(), truncated), (DEEPEST as usize, true));
    }

    #[test]
    fn nobody_is_met_twice() {
        // Two that are each other's parents, one that is its own, one that was told of twice, and a stranger.
        let mut stranger = element("9", "1", 0, BUTTON, "Pay");
        stranger.at.connection = ":1.8".to_owned();
        let scene = scene([
            element("1", "3", 0, FRAME, ""),
            element("2", "1", 0, PANEL, "old"),
            element("3", "2", 0, PANEL, ""),
            element("4", "4", 0, PANEL, ""),
            element("2", "1", 0, PANEL, "new"),
            stranger,
        ]);
        assert_eq!(ids(&scene, &view()), "1:1 2:2 3:3");
        assert_eq!(scene.get(scene.place(&at("2")).unwrap()).name, "new");
    }

    fn bounds(x: i32, y: i32) -> Option<Bounds> {
        Some(Bounds { x, y, width: 80, height: 24 })
    }

    fn nested(scene: &Scene, details: Vec<Details>) -> Vec<AccessibleNode> {
        let tops = top(scene, "1");
        let choice = choose(scene, &scene.children(), &tops, &view());
        let screen = ScreenRegion { x: 0, y: 0, width: 1280, height: 720 };
        nest(nodes(scene, &tops, &choice, details), Some(screen))
    }

    #[test]
    fn nodes_are_nested_and_what_nobody_sees_is_left_out() {
        let scene = editor();
        let text = |text: &str| Details { bounds: bounds(0, 30), text: Some(text.to_owned()), value: None };
        let place = |x| Details { bounds: bounds(x, 0), ..Details::default() };
        let [window] = &nested(&scene, vec![place(0), place(5), place(2000), text("a\u{fffc}b")])[..] else {
            panic!("one window")
        };
        assert_eq!((window.app.as_deref(), window.window.as_deref()), (Some("Editor"), Some("0x2400003")));
        // The panel is beside the screen, but what is in it is not.
        let [button, panel] = &window.children[..] else { panic!("{window:?}") };
        assert_eq!(
            (button.role.as_str(), button.name.as_str(), button.text.as_deref()),
            ("button", "Save as…", None)
        );
        assert_eq!(panel.children[0].text.as_deref(), Some("ab"));
        assert_eq!(panel.children[0].states, ["editable", "sensitive", "showing"]);
        let [window] = &nested(&scene, vec![place(0), place(-80), place(2000), place(1280)])[..] else {
            panic!()
        };
        assert!(window.children.is_empty());
    }

    #[test]
    fn a_line_says_what_an_element_is() {
        let mut scene = editor();
        let mut slider = element("6", "4", 1, 51, "Loud\n\"ness\"");
        slider.states = States(1 << State::Showing as u64 | 1 << 12);
        scene.add(slider);
        let place = |x| Details { bounds: bounds(x, 9), ..Details::default() };
        let details = vec![
            place(0),
            place(1),
            place(2),
            Details { text: Some("x".repeat(300)), ..place(3) },
            Details { value: Some(0.5), ..place(4) },
        ];
        let (text, count) = lines(&nested(&scene, details));
        let expected = format!(
            "7/1 frame \"Text\" 0,9 80x24 window 0x2400003\n \
             7/2 button \"Save as…\" 1,9 80x24\n \
             7/5 entry [editable] 3,9 80x24 = \"{}\"…\n \
             7/6 slider \"Loud\\n\\\"ness\\\"\" [focused,disabled] 4,9 80x24 = 0.5\n",
            "x".repeat(200),
        );
        assert_eq!((text.as_str(), count), (expected.as_str(), 4));
    }

    #[test]
    fn a_text_that_says_nothing_new_is_left_out() {
        assert_eq!(own_text("\u{fffc}\u{fffc} \n", ""), None);
        assert_eq!(own_text("Name", "Name"), None);
        assert_eq!(own_text("čau", ""), Some("čau".to_owned()));
        assert_eq!(own_text(&"ž".repeat(3000), "").unwrap().chars().count(), LONGEST_TEXT);
        assert_eq!((cut("žluť", 2), cut("ab", 2), cut("", 0)), ("žl", "ab", ""));
    }
}
