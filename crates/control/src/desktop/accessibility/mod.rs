//! What programs say of what they show (AT-SPI), for those who would rather read than look.
//!
//! Programs tell of their widgets over a bus in the computer. Speaking to it costs little there, but encoding, trees and
//! filters would cost a lot: so the agent only opens the way ([`Control::open_user_socket`]), and all of that is done here.
//! A request goes in rounds, each one batch of calls: which programs there are; each program's widgets at once; those
//! it did not tell of; and of what is in the answer, places, texts and values.
//!
//! Most programs tell of their widgets only while somebody listens, and begin from nothing when somebody comes. So a
//! connection that was used stays open for a while, for the next request.
//!
//! A program that does not answer costs a round its patience, and is named in the answer; the others are there.

mod atspi;
mod bus;
mod tree;

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use roost_api::{
    AccessibilityTree, AccessibleAction, AccessibleActionRequest, AccessibleNode, ApiError, Bounds,
    CompactTree, ComputerId, ErrorCode, FindQuery, FoundElements, NewValue, ScreenRegion, ScreenSize,
    TreeAnswer, TreeFormat, TreeQuery, Window, WindowId,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use zbus::Variant;

use self::atspi::{
    ACCESSIBLE, ACTION, CACHE, CACHE_PATH, COMPONENT, CacheItem, EDITABLE_TEXT, Interfaces, REGISTRY,
    ROOT_PATH, Reference, State, States, TEXT, VALUE, WireReference, role_name, role_number,
};
use self::bus::{Answer, Bus, BusError, Call, DAEMON};
use self::tree::{Details, Element, Scene, Top, View};
use crate::tunnel::TunnelIo;
use crate::{Control, Failure};

/// For the daemons of the desktop. The first one to ask starts one of them.
const DAEMON_PATIENCE: Duration = Duration::from_secs(10);
/// For programs, in each round. One with a long document needs seconds where the processor is emulated.
const PROGRAM_PATIENCE: Duration = Duration::from_secs(5);
/// For programs that begin to tell of themselves when somebody asks for the first time.
const FIRST_PATIENCE: Duration = Duration::from_secs(5);

/// How long a connection stays open for the next request.
const STAYS: Duration = Duration::from_secs(600);
/// What we listen to, so that programs tell of their widgets at all: something that hardly ever happens.
const LISTENED: &str = "object:announcement";

/// For a program that has been given a text, and how often it is looked at meanwhile.
const TEXT_PATIENCE: Duration = Duration::from_secs(3);
const TEXT_PAUSE: Duration = Duration::from_millis(200);

const MOST_PROGRAMS: usize = 100;
const MOST_ELEMENTS: usize = 20_000;
/// Of a list that its program does not tell of by itself, because it may be endless.
const MOST_CHILDREN: usize = 200;
/// Levels of what programs did not tell of by themselves.
const MOST_ROUNDS: usize = 20;
const MOST_IN_ANSWER: u32 = 5000;
const TREE_LIMIT: u32 = 1000;
const FIND_LIMIT: u32 = 100;
/// Characters that are asked for; some of them may be none.
const TEXT_ASKED: i32 = 4000;
const LONGEST_VALUE: usize = 64 * 1024;

const REGISTRY_PATH: &str = "/org/a11y/atspi/registry";
const SESSION_BUS: &str = "bus";
const SWITCH: &str = "org.a11y.Bus";
const SWITCH_PATH: &str = "/org/a11y/bus";
const STATUS: &str = "org.a11y.Status";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Connections that nobody uses at the moment.
#[derive(Debug, Default)]
pub(crate) struct Buses(Mutex<HashMap<ComputerId, Kept>>);

#[derive(Debug)]
struct Kept {
    bus: Bus<TunnelIo>,
    _end: AbortOnDropHandle<()>,
}

impl Buses {
    fn take(&self, id: ComputerId) -> Option<Bus<TunnelIo>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.remove(&id).map(|kept| kept.bus)
    }
}

impl Control {
    fn keep_bus(&self, id: ComputerId, bus: Bus<TunnelIo>) {
        let control = self.clone();
        let end = AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(STAYS).await;
            drop(control.inner.buses.take(id));
        }));
        let mut kept = self.inner.buses.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(id, Kept { bus, _end: end });
    }

    /// What is on the screen, as the programs tell it.
    pub async fn accessibility_tree(&self, id: ComputerId, query: TreeQuery) -> Result<TreeAnswer, Failure> {
        let view = View {
            visible: query.visible.unwrap_or(true),
            interactive: query.interactive.unwrap_or(false),
            role: None,
            name: None,
            depth: query.depth,
            limit: limit(query.limit, TREE_LIMIT)?,
            keeps_windows: true,
        };
        let Seen { nodes, screen, truncated, unanswered } =
            self.look(id, &view, query.window.as_deref()).await?;
        let region = ScreenRegion { x: 0, y: 0, width: screen.width, height: screen.height };
        let windows = tree::nest(nodes, view.visible.then_some(region));
        Ok(match query.format.unwrap_or_default() {
            TreeFormat::Tree => {
                let desktop = AccessibleNode {
                    id: "desktop".to_owned(),
                    role: "desktop frame".to_owned(),
                    name: String::new(),
                    description: None,
                    bounds: Some(Bounds { x: 0, y: 0, width: screen.width, height: screen.height }),
                    states: Vec::new(),
                    text: None,
                    value: None,
                    app: None,
                    window: None,
                    children: windows,
                };
                TreeAnswer::Tree(Box::new(AccessibilityTree { desktop, truncated, unanswered }))
            }
            TreeFormat::Compact => {
                let (text, count) = tree::lines(&windows);
                TreeAnswer::Compact(CompactTree { text, count, truncated, unanswered })
            }
        })
    }

    /// Elements by what they are and what they are called.
    pub async fn find_elements(&self, id: ComputerId, query: FindQuery) -> Result<FoundElements, Failure> {
        let role = query.role.as_deref().map(|role| {
            let message =
                "no role of AT-SPI: take one from the accessibility tree, such as `button` or `entry`";
            role_number(role).ok_or_else(|| ApiError::field("role", message))
        });
        let view = View {
            visible: query.visible.unwrap_or(true),
            interactive: query.interactive.unwrap_or(false),
            role: role.transpose()?,
            name: query.name.map(|name| name.to_lowercase()),
            depth: None,
            limit: limit(query.limit, FIND_LIMIT)?,
            keeps_windows: false,
        };
        let Seen { nodes, truncated, unanswered, .. } = self.look(id, &view, query.window.as_deref()).await?;
        let elements = nodes.into_iter().map(|(_, node)| node).collect();
        Ok(FoundElements { elements, truncated, unanswered })
    }

    async fn look(&self, id: ComputerId, view: &View, window: Option<&str>) -> Result<Seen, Failure> {
        let (bus, windows, screen) =
            tokio::try_join!(self.accessibility_bus(id), self.windows(id), self.screen_size(id))?;
        let Opened { bus, is_first } = bus;
        let mut reader = Reader { bus, unanswered: Vec::new(), truncated: false };
        let (nodes, found) = reader.look(view, window, &windows, is_first).await?;
        if !found && let Some(window) = window {
            return Err(no_window(window, &windows).into());
        }
        self.keep_bus(id, reader.bus);
        Ok(Seen { nodes, screen, truncated: reader.truncated, unanswered: reader.unanswered })
    }

    /// Does to an element what a person would do with pointer and keyboard.
    pub async fn act_on_element(
        &self,
        id: ComputerId,
        request: AccessibleActionRequest,
    ) -> Result<(), Failure> {
        let AccessibleActionRequest { id: element, action, value } = request;
        let at = Reference::parse(&element)?;
        let value = match (action, value) {
            (AccessibleAction::SetValue, None) => {
                return Err(ApiError::field("value", "missing: what to set the element to").into());
            }
            (_, Some(NewValue::Text(text))) if text.len() > LONGEST_VALUE => {
                let message = format!("longer than {LONGEST_VALUE} bytes; set a part and type the rest");
                return Err(ApiError::field("value", message).into());
            }
            (_, value) => value,
        };
        let Opened { mut bus, .. } = self.accessibility_bus(id).await?;
        act(&mut bus, &element, &at, action, value).await?;
        self.keep_bus(id, bus);
        Ok(())
    }

    /// A connection to the bus on which programs tell of their widgets. Those that do it only when somebody wants to
    /// know are told that somebody does.
    async fn accessibility_bus(&self, id: ComputerId) -> Result<Opened<TunnelIo>, Failure> {
        if let Some(mut bus) = self.inner.buses.take(id) {
            bus.begin_anew();
            // It may have broken since: the computer was stopped, or its desktop started again.
            let ping = Call::new(DAEMON, "/org/freedesktop/DBus", "org.freedesktop.DBus.Peer", "Ping");
            match bus.ask(&[ping], Instant::now() + DAEMON_PATIENCE).await.as_deref() {
                Ok([Some(Ok(_))]) => return Ok(Opened { bus, is_first: false }),
                Ok(_) => tracing::debug!(%id, "an accessibility bus does not answer any more"),
                Err(error) => tracing::debug!(%id, %error, "a connection to an accessibility bus is gone"),
            }
        }
        let deadline = Instant::now() + DAEMON_PATIENCE;
        let (tunnel, uid) = self.open_user_socket(id, SESSION_BUS).await.map_err(absent)?;
        let mut session = Bus::connect(tunnel.into_io(), uid, deadline).await?;
        let questions = [
            Call::new(SWITCH, SWITCH_PATH, SWITCH, "GetAddress"),
            Call::property(SWITCH, SWITCH_PATH, STATUS, "IsEnabled")?,
        ];
        let answers = session.ask(&questions, deadline).await?;
        let [address, is_enabled] = &answers[..] else { return Err(BusError::Late.into()) };
        let address = read::<String>(address).ok_or(BusError::Late)?;
        let is_first = !matches!(is_enabled, Some(Ok(reply)) if reply.variant::<bool>() == Some(true));
        if is_first {
            let enable = Call::new(SWITCH, SWITCH_PATH, PROPERTIES, "Set");
            let enable = enable.with(&(STATUS, "IsEnabled", Variant::from(true)))?;
            if let [Some(Err(refused))] = session.ask(&[enable], deadline).await?.as_slice() {
                tracing::warn!(%id, error = refused.name, reason = refused.message,
                    "programs cannot be told that somebody wants to know of their widgets");
            }
        }
        let path = socket_path(&address).ok_or(BusError::Nonsense("an address that is no path"))?;
        let (tunnel, uid) = self.open_user_socket(id, path).await.map_err(absent)?;
        let mut bus = Bus::connect(tunnel.into_io(), uid, deadline).await?;
        let listen = Call::new(REGISTRY, REGISTRY_PATH, REGISTRY, "RegisterEvent");
        let listen = listen.with(&(LISTENED, Vec::<String>::new(), ""))?;
        if let [Some(Err(refused))] = bus.ask(&[listen], deadline).await?.as_slice() {
            tracing::warn!(%id, error = refused.name, reason = refused.message, "nobody can listen to programs");
        }
        Ok(Opened { bus, is_first })
    }
}

#[derive(Debug)]
struct Opened<S> {
    bus: Bus<S>,
    /// Whether nobody has asked before, and some programs only begin to tell of themselves.
    is_first: bool,
}

#[derive(Debug)]
struct Seen {
    /// Each with its depth.
    nodes: Vec<(u32, AccessibleNode)>,
    screen: ScreenSize,
    truncated: bool,
    unanswered: Vec<String>,
}

impl From<BusError> for Failure {
    fn from(error: BusError) -> Self {
        let message = "the accessibility bus of the desktop does not answer; if the desktop is still starting, try \
                       again in a moment";
        let public = ApiError::new(ErrorCode::AgentUnavailable, message).retry_after_ms(1000);
        Self { public, source: Some(Box::new(error)) }
    }
}

/// Of a bus that does not listen.
fn absent(failure: Failure) -> Failure {
    match failure.public.code {
        ErrorCode::AgentUnavailable => {
            let public = Failure::from(BusError::Late).public;
            Failure { public, source: failure.source }
        }
        _ => failure,
    }
}

fn limit(wanted: Option<u32>, default: u32) -> Result<usize, ApiError> {
    let limit = wanted.unwrap_or(default);
    if !(1..=MOST_IN_ANSWER).contains(&limit) {
        return Err(ApiError::field("limit", format!("not between 1 and {MOST_IN_ANSWER}")));
    }
    Ok(limit as usize)
}

/// Of a D-Bus address: `unix:path=/run/user/1000/at-spi/bus_0,guid=…`, the first of several.
fn socket_path(address: &str) -> Option<&str> {
    let first = address.split(';').next()?.strip_prefix("unix:")?;
    first.split(',').find_map(|part| part.strip_prefix("path=")).filter(|path| path.starts_with('/'))
}

fn read<T: for<'d> serde::Deserialize<'d> + zbus::Type>(answer: &Answer) -> Option<T> {
    answer.as_ref()?.as_ref().ok()?.read()
}

fn property<T: for<'v> TryFrom<Variant<'v>>>(answer: &Answer) -> Option<T> {
    answer.as_ref()?.as_ref().ok()?.variant()
}

fn no_window(wanted: &str, windows: &[Window]) -> ApiError {
    let message = if windows.iter().any(|window| is_wanted(wanted, window)) {
        format!(
            "the program of the window {wanted:?} does not tell of what it shows; focus the window and try again, or \
             take a screenshot"
        )
    } else {
        format!("there is no window {wanted:?}; list the windows to see which there are")
    };
    ApiError::new(ErrorCode::NotFound, message)
}

/// Whether it is the window with that id, or has that in its title.
fn is_wanted(wanted: &str, window: &Window) -> bool {
    match wanted.parse::<WindowId>() {
        Ok(id) => window.id == id,
        Err(_) => window.title.to_lowercase().contains(&wanted.to_lowercase()),
    }
}

#[derive(Debug)]
struct Reader<S> {
    bus: Bus<S>,
    unanswered: Vec<String>,
    truncated: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Reader<S> {
    /// The elements of an answer, and whether the window that is wanted was among them.
    async fn look(
        &mut self,
        view: &View,
        wanted: Option<&str>,
        windows: &[Window],
        is_first: bool,
    ) -> Result<(Vec<(u32, AccessibleNode)>, bool), BusError> {
        let patience = Instant::now() + FIRST_PATIENCE;
        if is_first {
            let rule = format!("type='signal',member='{CHILDREN_CHANGED}',path='{ROOT_PATH}'");
            let listen = Call::new(DAEMON, "/org/freedesktop/DBus", DAEMON, "AddMatch").with(&rule)?;
            self.bus.ask(&[listen], patience).await?;
        }
        let (scene, tops) = loop {
            let (scene, roots) = self.scene(view.visible).await?;
            let tops = self.tops(&scene, &roots, windows, view.visible).await?;
            let tells = |window: &Window| tops.iter().any(|top| top.window == Some(window.id.to_string()));
            let is_missing = windows.iter().any(|window| window.focused && !tells(window));
            // The program that has the keyboard is the first to hear that somebody wants to know.
            if !is_first || !is_missing || !self.bus.signal(CHILDREN_CHANGED, patience).await? {
                break (scene, tops);
            }
        };
        let tops: Vec<Top> = match wanted {
            None => tops,
            Some(wanted) => {
                let ids: Vec<String> = windows
                    .iter()
                    .filter(|window| is_wanted(wanted, window))
                    .map(|window| window.id.to_string())
                    .collect();
                tops.into_iter()
                    .filter(|top| top.window.as_ref().is_some_and(|id| ids.contains(id)))
                    .collect()
            }
        };
        let choice = tree::choose(&scene, &scene.children(), &tops, view);
        self.truncated |= choice.truncated;
        let places: Vec<&Element> = choice.chosen.iter().map(|chosen| scene.get(chosen.place)).collect();
        let details = self.details(&places).await?;
        Ok((tree::nodes(&scene, &tops, &choice, details), !tops.is_empty()))
    }

    /// All that the programs tell, and each program's root.
    async fn scene(&mut self, visible: bool) -> Result<(Scene, Vec<usize>), BusError> {
        let deadline = Instant::now() + DAEMON_PATIENCE;
        let programs = Call::new(REGISTRY, ROOT_PATH, ACCESSIBLE, "GetChildren");
        let answers = self.bus.ask(&[programs], deadline).await?;
        let programs = answers.first().and_then(read::<Vec<WireReference>>).ok_or(BusError::Late)?;
        self.truncated |= programs.len() > MOST_PROGRAMS;
        let programs: Vec<Reference> =
            programs.into_iter().take(MOST_PROGRAMS).map(Reference::from).collect();

        let questions: Vec<Call> =
            programs.iter().map(|root| Call::new(&root.connection, CACHE_PATH, CACHE, "GetItems")).collect();
        let answers = self.bus.ask(&questions, Instant::now() + PROGRAM_PATIENCE).await?;
        let mut scene = Scene::default();
        let mut roots = Vec::new();
        self.unanswered.clear();
        for (root, answer) in programs.into_iter().zip(&answers) {
            if answer.is_none() {
                let name = self.process(&root.connection).await?;
                self.unanswered.push(name);
                continue;
            }
            // A program that tells nothing of itself is asked for its root, and then for more.
            let items = read::<Vec<CacheItem>>(answer).unwrap_or_default();
            let own = items.into_iter().map(Element::from).filter(|one| one.at.connection == root.connection);
            for element in own {
                if scene.len() == MOST_ELEMENTS {
                    self.truncated = true;
                    break;
                }
                scene.add(element);
            }
            if scene.place(&root).is_none() {
                let nobody = Reference::new("", "");
                for element in self.ask_for(&nobody, vec![(0, root.clone())], false).await? {
                    scene.add(element);
                }
            }
            roots.extend(scene.place(&root));
        }
        self.complete(&mut scene, &roots, visible).await?;
        Ok((scene, roots))
    }

    /// A name for a program that does not say its own.
    async fn process(&mut self, connection: &str) -> Result<String, BusError> {
        let question = Call::new(DAEMON, "/org/freedesktop/DBus", DAEMON, "GetConnectionUnixProcessID");
        let answers = self.bus.ask(&[question.with(&connection)?], Instant::now() + DAEMON_PATIENCE).await?;
        let process = answers.first().and_then(read::<u32>);
        Ok(process.map_or_else(|| format!("connection {connection}"), |process| format!("process {process}")))
    }

    /// Asks for children that programs did not tell of by themselves.
    async fn complete(&mut self, scene: &mut Scene, roots: &[usize], visible: bool) -> Result<(), BusError> {
        let mut asked: HashSet<usize> = HashSet::new();
        for _ in 0..MOST_ROUNDS {
            let children = scene.children();
            let mut wanting = Vec::new();
            let mut seen = vec![false; scene.len()];
            let mut left = roots.to_vec();
            while let Some(place) = left.pop() {
                let element = scene.get(place);
                let is_root = roots.contains(&place);
                if std::mem::replace(&mut seen[place], true) || (visible && !is_root && !element.is_showing())
                {
                    continue;
                }
                let known = i32::try_from(children.of(place).len()).unwrap_or(i32::MAX);
                if (element.child_count < 0 || element.child_count > known) && asked.insert(place) {
                    wanting.push(element.at.clone());
                }
                left.extend(children.of(place));
            }
            if wanting.is_empty() {
                return Ok(());
            }
            let questions: Vec<Call> = wanting
                .iter()
                .map(|at| Call::new(&at.connection, &at.path, ACCESSIBLE, "GetChildren"))
                .collect();
            let answers = self.bus.ask(&questions, Instant::now() + PROGRAM_PATIENCE).await?;
            for (parent, answer) in wanting.iter().zip(&answers) {
                let references = read::<Vec<WireReference>>(answer).unwrap_or_default();
                self.truncated |= references.len() > MOST_CHILDREN;
                let new = (0..).zip(references.into_iter().take(MOST_CHILDREN).map(Reference::from));
                let new =
                    new.filter(|(_, at)| at.connection == parent.connection && scene.place(at).is_none());
                let new: Vec<(i32, Reference)> = new.collect();
                if scene.len() + new.len() > MOST_ELEMENTS {
                    self.truncated = true;
                    return Ok(());
                }
                for element in self.ask_for(parent, new, visible).await? {
                    scene.add(element);
                }
            }
        }
        self.truncated = true;
        Ok(())
    }

    /// What each of a parent's children says of itself. Of those that nobody sees, nothing where `visible` is wanted.
    async fn ask_for(
        &mut self,
        parent: &Reference,
        children: Vec<(i32, Reference)>,
        visible: bool,
    ) -> Result<Vec<Element>, BusError> {
        let deadline = Instant::now() + PROGRAM_PATIENCE;
        let states: Vec<Call> = children
            .iter()
            .map(|(_, at)| Call::new(&at.connection, &at.path, ACCESSIBLE, "GetState"))
            .collect();
        let states = self.bus.ask(&states, deadline).await?;
        let states = states.iter().map(|answer| read::<Vec<u32>>(answer).map(|words| States::new(&words)));
        let shown: Vec<((i32, Reference), States)> = children
            .into_iter()
            .zip(states)
            .filter_map(|(child, states)| states.map(|states| (child, states)))
            .filter(|(_, states)| !visible || states.has(State::Showing))
            .collect();
        let mut questions = Vec::new();
        for ((_, Reference { connection, path }), _) in &shown {
            questions.push(Call::new(connection, path, ACCESSIBLE, "GetRole"));
            questions.push(Call::new(connection, path, ACCESSIBLE, "GetInterfaces"));
            questions.push(Call::property(connection, path, ACCESSIBLE, "Name")?);
            questions.push(Call::property(connection, path, ACCESSIBLE, "ChildCount")?);
        }
        let answers = self.bus.ask(&questions, deadline).await?;
        let elements =
            shown.into_iter().zip(answers.chunks(4)).filter_map(|(((index, at), states), answers)| {
                let [role, interfaces, name, child_count] = answers else { return None };
                Some(Element {
                    at,
                    parent: parent.clone(),
                    index,
                    child_count: property(child_count).unwrap_or_default(),
                    interfaces: Interfaces::new(&read::<Vec<String>>(interfaces).unwrap_or_default()),
                    name: property(name).unwrap_or_default(),
                    role: read(role)?,
                    description: String::new(),
                    states,
                })
            });
        Ok(elements.collect())
    }

    /// The windows of all programs: those of the window manager's list in its order, then panels and menus.
    async fn tops(
        &mut self,
        scene: &Scene,
        roots: &[usize],
        windows: &[Window],
        visible: bool,
    ) -> Result<Vec<Top>, BusError> {
        let children = scene.children();
        let mut tops = Vec::new();
        for root in roots {
            let app = scene.get(*root).name.clone();
            let own = children.of(*root).iter().filter(|place| !visible || scene.get(**place).is_showing());
            tops.extend(own.map(|place| Top { place: *place, app: app.clone(), window: None }));
        }
        let questions: Vec<Call> =
            tops.iter().map(|top| extents(&scene.get(top.place).at)).collect::<Result<_, _>>()?;
        let answers = self.bus.ask(&questions, Instant::now() + PROGRAM_PATIENCE).await?;
        let places: Vec<(&str, Option<Bounds>)> = tops
            .iter()
            .zip(&answers)
            .map(|(top, answer)| (scene.get(top.place).name.as_str(), bounds(answer)))
            .collect();
        let matched = match_windows(&places, windows);
        for (top, window) in tops.iter_mut().zip(&matched) {
            top.window = window.map(|window| windows[window].id.to_string());
        }
        let mut ordered: Vec<(usize, Top)> =
            tops.into_iter().zip(matched).map(|(top, window)| (window.unwrap_or(usize::MAX), top)).collect();
        let is_hidden = |window: usize| windows.get(window).is_some_and(|window| window.minimized);
        ordered.retain(|(window, _)| !visible || !is_hidden(*window));
        ordered.sort_by_key(|(window, _)| *window);
        Ok(ordered.into_iter().map(|(_, top)| top).collect())
    }

    /// Places, texts and values of elements.
    async fn details(&mut self, elements: &[&Element]) -> Result<Vec<Details>, BusError> {
        #[derive(Clone, Copy)]
        enum Question {
            Bounds,
            Length,
            Value,
        }
        let deadline = Instant::now() + PROGRAM_PATIENCE;
        let (mut asked, mut questions) = (Vec::new(), Vec::new());
        for (index, element) in elements.iter().enumerate() {
            let Reference { connection, path } = &element.at;
            if element.interfaces.component {
                asked.push((index, Question::Bounds));
                questions.push(extents(&element.at)?);
            }
            if element.has_own_text() {
                asked.push((index, Question::Length));
                questions.push(Call::property(connection, path, TEXT, "CharacterCount")?);
            }
            if element.interfaces.value && role_name(element.role) != "scroll bar" {
                asked.push((index, Question::Value));
                questions.push(Call::property(connection, path, VALUE, "CurrentValue")?);
            }
        }
        let answers = self.bus.ask(&questions, deadline).await?;
        let mut details = vec![Details::default(); elements.len()];
        let (mut texts, mut lengths) = (Vec::new(), Vec::new());
        for ((index, question), answer) in asked.into_iter().zip(&answers) {
            match question {
                Question::Bounds => details[index].bounds = bounds(answer),
                Question::Value => details[index].value = property(answer),
                Question::Length => {
                    let length = property::<i32>(answer).unwrap_or_default();
                    if length > 0 {
                        texts.push(index);
                        lengths.push(length.min(TEXT_ASKED));
                    }
                }
            }
        }
        let questions: Vec<Call> = texts
            .iter()
            .zip(&lengths)
            .map(|(index, length)| {
                let Reference { connection, path } = &elements[*index].at;
                Call::new(connection, path, TEXT, "GetText").with(&(0_i32, *length))
            })
            .collect::<Result<_, _>>()?;
        let answers = self.bus.ask(&questions, Instant::now() + PROGRAM_PATIENCE).await?;
        for (index, answer) in texts.into_iter().zip(&answers) {
            details[index].text = read(answer);
        }
        Ok(details)
    }
}

const CHILDREN_CHANGED: &str = "ChildrenChanged";
/// Of places: from the corner of the screen.
const ON_SCREEN: u32 = 0;

fn extents(at: &Reference) -> Result<Call, BusError> {
    Call::new(&at.connection, &at.path, COMPONENT, "GetExtents").with(&ON_SCREEN)
}

/// Toolkits say something impossible of what has no place.
fn bounds(answer: &Answer) -> Option<Bounds> {
    let (x, y, width, height) = read::<(i32, i32, i32, i32)>(answer)?;
    let (width, height) = (u32::try_from(width).ok()?, u32::try_from(height).ok()?);
    let is_possible = x != i32::MIN && y != i32::MIN;
    is_possible.then_some(Bounds { x, y, width, height })
}

/// Which window each of the programs' windows is: the one of the same name, the nearest one of several.
fn match_windows(tops: &[(&str, Option<Bounds>)], windows: &[Window]) -> Vec<Option<usize>> {
    let mut matched = vec![None; tops.len()];
    for (index, window) in windows.iter().enumerate() {
        let far = |bounds: Option<Bounds>| {
            let Some(bounds) = bounds else { return u64::MAX };
            let sides = [
                bounds.x.abs_diff(window.x),
                bounds.y.abs_diff(window.y),
                bounds.width.abs_diff(window.width),
                bounds.height.abs_diff(window.height),
            ];
            sides.into_iter().map(u64::from).sum()
        };
        let candidates = tops
            .iter()
            .enumerate()
            .filter(|(top, (name, _))| matched[*top].is_none() && *name == window.title);
        if let Some((top, _)) = candidates.min_by_key(|(_, (_, bounds))| far(*bounds)) {
            matched[top] = Some(index);
        }
    }
    matched
}

/// Some programs say that they have taken a text and have not: a browser does so for what is in its pages.
async fn taken<S: AsyncRead + AsyncWrite + Unpin>(
    bus: &mut Bus<S>,
    id: &str,
    at: &Reference,
    text: &str,
) -> Result<(), Failure> {
    let until = Instant::now() + TEXT_PATIENCE;
    loop {
        let question = Call::new(&at.connection, &at.path, TEXT, "GetText").with(&(0_i32, -1_i32))?;
        let answers = bus.ask(&[question], Instant::now() + PROGRAM_PATIENCE).await?;
        // Where nothing can be read, nobody knows better. Of a password dots are read, as many as there are letters.
        let Some(now) = answers.first().and_then(read::<String>) else { return Ok(()) };
        if now == text || now.chars().count() == text.chars().count() {
            return Ok(());
        }
        if Instant::now() >= until {
            let message = format!(
                "the program of the element {id} has not taken the text, as a browser in its pages; click on the element \
                 and type the text"
            );
            return Err(ApiError::new(ErrorCode::ResourceState, message).into());
        }
        tokio::time::sleep(TEXT_PAUSE).await;
    }
}

async fn act<S: AsyncRead + AsyncWrite + Unpin>(
    bus: &mut Bus<S>,
    id: &str,
    at: &Reference,
    action: AccessibleAction,
    value: Option<NewValue>,
) -> Result<(), Failure> {
    let Reference { connection, path } = at;
    let questions = [
        Call::new(connection, path, ACCESSIBLE, "GetState"),
        Call::new(connection, path, ACCESSIBLE, "GetInterfaces"),
        Call::new(connection, path, ACTION, "GetActions"),
    ];
    let answers = bus.ask(&questions, Instant::now() + PROGRAM_PATIENCE).await?;
    let [states, interfaces, actions] = &answers[..] else { return Err(BusError::Late.into()) };
    if states.is_none() {
        let message =
            format!("the program of the element {id} does not answer; try again, or close its window");
        return Err(ApiError::new(ErrorCode::AgentUnavailable, message).retry_after_ms(1000).into());
    }
    let (Some(states), Some(interfaces)) = (read::<Vec<u32>>(states), read::<Vec<String>>(interfaces)) else {
        let message = format!("there is no element {id}, or it is gone; get the accessibility tree again");
        return Err(ApiError::new(ErrorCode::NotFound, message).into());
    };
    let (states, interfaces) = (States::new(&states), Interfaces::new(&interfaces));
    let actions: Vec<String> = read::<Vec<(String, String, String)>>(actions)
        .unwrap_or_default()
        .into_iter()
        .map(|(name, ..)| name)
        .collect();
    let can = Can::new(states, interfaces, &actions);
    if !can.has(action) {
        return Err(ApiError::field("action", format!("the element {id} cannot do that; {can}")).into());
    }
    if action != AccessibleAction::Focus && !states.has(State::Sensitive) && !states.has(State::Enabled) {
        let message =
            format!("the element {id} is disabled: its program wants something else to be done first");
        return Err(ApiError::new(ErrorCode::ResourceState, message).into());
    }
    let mut written = None;
    let call = match (action, value) {
        (AccessibleAction::Press, _) => {
            Call::new(connection, path, ACTION, "DoAction").with(&press_of(&actions))?
        }
        (AccessibleAction::Focus, _) => Call::new(connection, path, COMPONENT, "GrabFocus"),
        (AccessibleAction::SetValue, value) if interfaces.editable_text => {
            let text = match value {
                Some(NewValue::Text(text)) => text,
                Some(NewValue::Number(number)) => number.to_string(),
                None => String::new(),
            };
            let call = Call::new(connection, path, EDITABLE_TEXT, "SetTextContents").with(&text)?;
            written = Some(text).filter(|_| interfaces.text);
            call
        }
        (AccessibleAction::SetValue, value) => {
            let number = match value {
                Some(NewValue::Number(number)) => Some(number),
                Some(NewValue::Text(text)) => text.trim().parse::<f64>().ok(),
                None => None,
            };
            let number = number.filter(|number| number.is_finite());
            let number = number.ok_or_else(|| ApiError::field("value", "this element takes a number"))?;
            let arguments = (VALUE, "CurrentValue", Variant::from(number));
            Call::new(connection, path, PROPERTIES, "Set").with(&arguments)?
        }
    };
    let answers = bus.ask(&[call], Instant::now() + DAEMON_PATIENCE).await?;
    match answers.first() {
        Some(Some(Ok(reply))) if reply.read::<bool>() != Some(false) => match written {
            Some(text) => taken(bus, id, at, &text).await,
            None => Ok(()),
        },
        Some(Some(Ok(_))) => {
            let message = format!(
                "the program of the element {id} refused; it may be read-only or covered by a dialog"
            );
            Err(ApiError::new(ErrorCode::ResourceState, message).into())
        }
        Some(Some(Err(refused))) => {
            let why = if refused.message.is_empty() { &refused.name } else { &refused.message };
            let message = format!("the program of the element {id} refused: {why}");
            Err(ApiError::new(ErrorCode::ResourceState, message).into())
        }
        Some(None) | None => {
            let message = format!(
                "the program of the element {id} has not answered; look whether it did it before trying again"
            );
            Err(ApiError::new(ErrorCode::AgentUnavailable, message).into())
        }
    }
}

/// What an element can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Can {
    press: bool,
    focus: bool,
    set_value: bool,
}

impl Can {
    fn new(states: States, interfaces: Interfaces, actions: &[String]) -> Self {
        Self {
            press: !actions.is_empty(),
            focus: interfaces.component && states.has(State::Focusable),
            set_value: interfaces.value || (interfaces.editable_text && states.has(State::Editable)),
        }
    }

    fn has(self, action: AccessibleAction) -> bool {
        match action {
            AccessibleAction::Press => self.press,
            AccessibleAction::Focus => self.focus,
            AccessibleAction::SetValue => self.set_value,
        }
    }
}

impl std::fmt::Display for Can {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = [(self.press, "press"), (self.focus, "focus"), (self.set_value, "set_value")];
        let can: Vec<&str> = all.into_iter().filter_map(|(can, name)| can.then_some(name)).collect();
        match can.is_empty() {
            true => {
                f.write_str("it can do nothing: try an element in it or around it, or click at its place")
            }
            false => write!(f, "it can {}", can.join(", ")),
        }
    }
}

/// The action that is most like a click; else the first one.
fn press_of(actions: &[String]) -> i32 {
    let like_a_click = ["click", "press", "jump", "activate"];
    let index = like_a_click.iter().find_map(|wanted| actions.iter().position(|action| action == wanted));
    index.and_then(|index| i32::try_from(index).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use zbus::ObjectPath;

    use super::bus::fake::{self, Asked, Says, says};
    use super::*;

    const SHOWN: u32 = 1 << 25 | 1 << 24;

    fn window(id: u32, title: &str, x: i32) -> Window {
        Window {
            id: WindowId(id),
            title: title.to_owned(),
            app: "App".to_owned(),
            x,
            y: 0,
            width: 100,
            height: 50,
            focused: false,
            is_focused: false,
            minimized: false,
            maximized: false,
        }
    }

    fn path(name: &str) -> ObjectPath<'static> {
        ObjectPath::try_from(format!("/org/a11y/atspi/accessible/{name}")).unwrap()
    }

    type Item = (
        (&'static str, ObjectPath<'static>),
        (&'static str, ObjectPath<'static>),
        (&'static str, ObjectPath<'static>),
        i32,
        i32,
        Vec<&'static str>,
        &'static str,
        u32,
        &'static str,
        Vec<u32>,
    );

    fn item(name: &str, parent: &str, children: i32, role: u32, label: &'static str) -> Item {
        let of = ":1.7";
        let interfaces = vec![ACCESSIBLE, COMPONENT];
        (
            (of, path(name)),
            (of, path("root")),
            (of, path(parent)),
            0,
            children,
            interfaces,
            label,
            role,
            "",
            vec![SHOWN, 0],
        )
    }

    /// `:1.7` has a window with a list that it does not tell of by itself, `:1.8` hangs.
    fn desktop(asked: &Asked) -> Says {
        let name = asked.path.rsplit('/').next().unwrap_or_default();
        match (asked.destination.as_str(), asked.member.as_str(), name) {
            (REGISTRY, "GetChildren", _) => says(&vec![(":1.7", path("root")), (":1.8", path("root"))]),
            (DAEMON, "GetConnectionUnixProcessID", _) => says(&77_u32),
            (":1.8", ..) => Says::Nothing,
            (_, "GetItems", _) => says(&vec![
                item("root", "null", 1, 75, "Files"),
                item("1", "root", 1, 23, "Home"),
                item("2", "1", -1, 31, ""),
                item("2", "2", -1, 31, "its own parent"),
                item("2", "1", -1, 31, ""),
            ]),
            // One of them is nobody's, one another program's.
            (_, "GetChildren", "2") => says(&vec![
                (":1.7", path("3")),
                (":1.7", path("4")),
                (":1.8", path("5")),
                (":1.7", path("6")),
            ]),
            (_, "GetChildren", _) => says(&Vec::<(&str, ObjectPath<'_>)>::new()),
            (_, "GetState", "4") => says(&vec![0_u32, 0]),
            (_, "GetState", "6") => Says::Error("org.freedesktop.DBus.Error.UnknownObject"),
            (_, "GetState", _) => says(&vec![SHOWN, 0]),
            (_, "GetRole", _) => says(&32_u32),
            (_, "GetInterfaces", _) => says(&vec![COMPONENT]),
            (_, "Get", _) if asked.body.ends_with(b"Name\0") => says(&Variant::from("notes.txt")),
            (_, "Get", _) => says(&Variant::from(0_i32)),
            (_, "GetExtents", _) => says(&(5, 6, 70, 8)),
            other => panic!("nobody should ask {other:?}"),
        }
    }

    fn view() -> View {
        View {
            visible: true,
            interactive: false,
            role: None,
            name: None,
            depth: None,
            limit: 100,
            keeps_windows: true,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_hangs_hides_no_other() {
        let deadline = Instant::now() + DAEMON_PATIENCE;
        let bus = Bus::connect(fake::bus(|asked| desktop(&asked)), 1000, deadline).await.unwrap();
        let mut reader = Reader { bus, unanswered: Vec::new(), truncated: false };
        let begun = Instant::now();
        let (nodes, found) =
            reader.look(&view(), Some("0x24"), &[window(0x24, "Home", 0)], false).await.unwrap();
        assert_eq!(begun.elapsed(), PROGRAM_PATIENCE);
        let said: Vec<String> = nodes
            .iter()
            .map(|(depth, node)| format!("{depth} {} {} {}", node.id, node.role, node.name))
            .collect();
        assert_eq!(said, ["1 7/1 frame Home", "2 7/2 list ", "3 7/3 list item notes.txt"]);
        assert_eq!(nodes[0].1.window.as_deref(), Some("0x24"));
        assert_eq!(nodes[2].1.bounds, Some(Bounds { x: 5, y: 6, width: 70, height: 8 }));
        assert_eq!(
            (reader.unanswered, reader.truncated, found),
            (vec!["process 77".to_owned()], false, true)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_minimized_window_is_not_visible() {
        let deadline = Instant::now() + DAEMON_PATIENCE;
        let bus = Bus::connect(fake::bus(|asked| desktop(&asked)), 1000, deadline).await.unwrap();
        let mut reader = Reader { bus, unanswered: Vec::new(), truncated: false };
        let hidden = [Window { minimized: true, ..window(1, "Home", 0) }];
        let (nodes, _) = reader.look(&view(), None, &hidden, false).await.unwrap();
        assert!(nodes.is_empty());
        let (nodes, _) = reader.look(&View { visible: false, ..view() }, None, &hidden, false).await.unwrap();
        assert_eq!(nodes.len(), 4);
    }

    async fn acted(
        states: u32,
        interfaces: &'static [&'static str],
        actions: &'static [&'static str],
        action: AccessibleAction,
        value: Option<NewValue>,
    ) -> (Result<(), Failure>, Vec<String>) {
        let (told, mut said) = tokio::sync::mpsc::unbounded_channel();
        let stream = fake::bus(move |asked| match asked.member.as_str() {
            "GetState" if states == 0 => Says::Error("org.freedesktop.DBus.Error.ServiceUnknown"),
            "GetState" => says(&vec![states, 0]),
            "GetInterfaces" => says(&interfaces.to_vec()),
            "GetActions" if actions.is_empty() => Says::Error("org.freedesktop.DBus.Error.UnknownMethod"),
            "GetText" => says(&"nobody"),
            "GetActions" => says(&actions.iter().map(|name| (*name, "", "")).collect::<Vec<_>>()),
            member => {
                told.send(format!("{member} {}", String::from_utf8_lossy(&asked.body).replace('\0', "")))
                    .unwrap();
                says(&true)
            }
        });
        let mut bus = Bus::connect(stream, 1000, Instant::now() + DAEMON_PATIENCE).await.unwrap();
        let outcome = act(&mut bus, "7/3", &Reference::parse("7/3").unwrap(), action, value).await;
        let mut done = Vec::new();
        while let Ok(one) = said.try_recv() {
            done.push(one);
        }
        (outcome, done)
    }

    #[tokio::test(start_paused = true)]
    async fn an_element_does_what_it_can_and_says_what_it_cannot() {
        use AccessibleAction::{Focus, Press, SetValue};
        const ON: u32 = 1 << 24 | 1 << 11 | 1 << 7;
        let text = |text: &str| Some(NewValue::Text(text.to_owned()));
        let (outcome, done) = acted(ON, &[ACTION], &["menu", "click"], Press, None).await;
        outcome.unwrap();
        assert_eq!(done, ["DoAction \u{1}"]);
        let (outcome, done) = acted(ON, &[COMPONENT], &[], Focus, None).await;
        outcome.unwrap();
        assert_eq!(done, ["GrabFocus "]);
        let (outcome, done) = acted(ON, &[EDITABLE_TEXT], &[], SetValue, text("kůň")).await;
        outcome.unwrap();
        assert_eq!(done, ["SetTextContents \u{5}kůň"]);
        // It says that it has taken it, and shows what it showed before.
        let (outcome, _) = acted(ON, &[EDITABLE_TEXT, TEXT], &[], SetValue, text("kůň")).await;
        let refused = outcome.unwrap_err().public;
        assert!(refused.code == ErrorCode::ResourceState && refused.message.contains("type"), "{refused:?}");
        let (outcome, _) = acted(ON, &[EDITABLE_TEXT, TEXT], &[], SetValue, text("nobody")).await;
        outcome.unwrap();
        let (outcome, done) = acted(ON, &[VALUE], &[], SetValue, text(" 1.5 ")).await;
        outcome.unwrap();
        assert!(done[0].starts_with("Set ") && done[0].contains("CurrentValue"), "{done:?}");

        for (states, interfaces, actions, action, value, code, says) in [
            (ON, &[COMPONENT][..], &[][..], Press, None, ErrorCode::ValidationFailed, "it can focus"),
            (ON, &[ACTION], &["click"], SetValue, text("x"), ErrorCode::ValidationFailed, "it can press"),
            (1, &[], &[], Focus, None, ErrorCode::ValidationFailed, "can do nothing"),
            (ON, &[VALUE], &[], SetValue, text("loud"), ErrorCode::ValidationFailed, "a number"),
            (1, &[ACTION], &["click"], Press, None, ErrorCode::ResourceState, "disabled"),
            (0, &[], &[], Press, None, ErrorCode::NotFound, "get the accessibility tree again"),
        ] {
            let (outcome, done) = acted(states, interfaces, actions, action, value).await;
            let refused = outcome.unwrap_err().public;
            let fields: String = refused.fields.values().flatten().cloned().collect();
            let said = format!("{} {fields}", refused.message);
            assert!(refused.code == code && said.contains(says), "{refused:?}");
            assert!(done.is_empty());
        }
    }

    #[test]
    fn windows_are_told_apart_by_their_places() {
        let place = |x| Some(Bounds { x, y: 0, width: 100, height: 50 });
        let windows = [window(1, "Terminal", 300), window(2, "Terminal", 0), window(3, "Other", 0)];
        let tops = [("Terminal", place(10)), ("panel", None), ("Terminal", place(310)), ("Terminal", None)];
        assert_eq!(match_windows(&tops, &windows), [Some(1), None, Some(0), None]);
        assert!(
            is_wanted("0x2", &windows[1]) && is_wanted("2", &windows[1]) && !is_wanted("0x3", &windows[1])
        );
        assert!(is_wanted("term", &windows[1]) && !is_wanted("xterm", &windows[1]));
    }

    #[test]
    fn addresses_of_other_kinds_are_not_followed() {
        assert_eq!(
            socket_path("unix:path=/run/user/1000/at-spi/bus_0,guid=12"),
            Some("/run/user/1000/at-spi/bus_0")
        );
        assert_eq!(socket_path("unix:guid=12,path=/a;tcp:host=x"), Some("/a"));
        for other in ["", "tcp:host=x,path=/a", "unix:abstract=/a", "unix:path=relative"] {
            assert_eq!(socket_path(other), None, "{other}");
        }
    }
}
