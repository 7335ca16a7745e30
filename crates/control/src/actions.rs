//! What clients can do here, for those that ask before they do it. A request is checked when it comes, whatever was
//! answered before.

use roost_api::{ActionDecision, AuthorizeAction, Capability, Decision};
use roost_store::Caller;

use crate::keys::hash;
use crate::{Control, Failure};

const VERSION: &str = "1";

/// By what they are about.
const CAPABILITIES: [(&str, &[&str]); 17] = [
    (
        "computer",
        &[
            "create",
            "list",
            "get",
            "destroy",
            "update",
            "start",
            "stop",
            "restart",
            "viewer.password",
            "rotate.viewer.password",
            "screenshot",
            "click",
            "right.click",
            "double.click",
            "move.cursor",
            "mouse.down",
            "mouse.up",
            "drag",
            "scroll",
            "type",
            "key",
            "key.down",
            "key.up",
            "hotkey",
            "wait",
            "get.screen.size",
            "get.cursor.position",
            "get.clipboard",
            "set.clipboard",
            "get.desktop.env",
            "set.wallpaper",
            "accessibility.tree",
            "windows",
            "launch",
            "focus.window",
            "maximize.window",
            "minimize.window",
            "close.window",
            "set.window.size",
            "set.window.position",
            "bash",
            "read.file",
            "stat.file",
            "mkdir",
            "delete.file",
            "write.file",
            "list.files",
            "rename.file",
            "copy.file",
            "upload.file",
            "logs",
            "expose.port",
            "list.ports",
            "preview.url",
            "list.regions",
        ],
    ),
    ("computer.checkpoint", &["create", "list", "restore", "delete"]),
    ("computer.service", &["create", "list", "start", "stop", "restart", "logs", "delete"]),
    ("computer.env", &["list", "set", "delete"]),
    ("computer.domain", &["add", "list", "delete"]),
    ("computer.network.policy", &["get", "set", "reset"]),
    ("computer.template", &["list", "create"]),
    ("region", &["list"]),
    ("product.template", &["list", "get", "readiness"]),
    ("workspace", &["list", "create", "get", "update", "stats", "usage"]),
    ("project", &["list", "get", "create"]),
    ("organization", &["list", "current", "switch"]),
    ("api.key", &["list", "create", "delete"]),
    ("webhook", &["list", "create", "delete", "test"]),
    ("volume", &["list", "create", "get", "delete", "attach", "detach"]),
    ("billing", &["usage", "plan"]),
    ("settings", &["get", "get.branding", "update.branding", "compute.pricing"]),
];

fn names() -> impl Iterator<Item = String> {
    CAPABILITIES.into_iter().flat_map(|(area, verbs)| verbs.iter().map(move |verb| format!("{area}.{verb}")))
}

impl Control {
    pub fn capabilities(&self) -> Vec<Capability> {
        names()
            .map(|name| Capability {
                fingerprint: hash(&format!("{name} {VERSION}")),
                version: VERSION.to_owned(),
                name,
            })
            .collect()
    }

    /// Whether the caller may do that, as far as it can be told beforehand.
    pub async fn authorize(
        &self,
        caller: &Caller,
        request: &AuthorizeAction,
    ) -> Result<ActionDecision, Failure> {
        let deny = |reason: String| ActionDecision { decision: Decision::Deny, reason: Some(reason) };
        let name = &request.capability.name;
        if !names().any(|known| known == *name) {
            return Ok(deny(format!(
                "{name:?} is nothing that this server does: see GET /api/v1/actions/catalog"
            )));
        }
        if let Some(workspace) = request.workspace_id {
            match self.workspace(caller, &workspace.to_string()).await {
                Ok(_) => {}
                Err(failure) if failure.public.code.status() < 500 => {
                    return Ok(deny(failure.public.message));
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(ActionDecision { decision: Decision::Allow, reason: None })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_capability_is_there_once() {
        let all: BTreeSet<String> = names().collect();
        assert_eq!((all.len(), names().count()), (112, 112));
        for name in ["computer.set.window.size", "api.key.list", "computer.checkpoint.create"] {
            assert!(all.contains(name), "{name}");
        }
    }
}
