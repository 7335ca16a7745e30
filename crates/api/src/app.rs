//! Desktop programs of a computer, and what can be installed.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ComputerId, Timestamp};

/// A desktop program that is installed on a computer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct App {
    /// Of its desktop entry; `desktop/launch` takes it.
    pub id: String,
    pub name: String,
    /// Its command line.
    pub exec: String,
    /// A name in the icon theme, or a path in the computer; empty where it has none.
    pub icon: String,
    pub categories: Vec<String>,
}

/// Answer of `GET /computers/{id}/apps`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AppList {
    pub computer_id: ComputerId,
    /// Every desktop program, by name.
    pub apps: Vec<App>,
    pub total: usize,
    /// The apps of the catalogue that were selected for this computer, in their order, and how far each is.
    pub installations: Vec<Installation>,
}

/// How far the installation of a selected app is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum InstallationStatus {
    /// For the computer to run, or for the app before it.
    Waiting,
    Installing,
    Installed,
    /// `error` says why. Selecting the app again tries again.
    Failed,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Installation {
    /// Its id in the catalogue.
    pub app: String,
    pub status: InstallationStatus,
    /// Percent.
    pub progress: u8,
    pub error: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Answer of `POST /computers/{id}/apps`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Installations {
    pub computer_id: ComputerId,
    pub installations: Vec<Installation>,
}

/// Body of `POST /computers/{id}/apps`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct SelectApps {
    /// Required: ids from the catalogue.
    pub apps: Option<Vec<String>>,
}

/// An app that can be installed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CatalogApp {
    /// What `selected_apps` takes.
    pub id: String,
    pub name: String,
    pub description: String,
    pub category: String,
    /// The Debian packages it is made of.
    pub packages: Vec<String>,
}

/// Answer of `GET /apps/catalog`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Catalog {
    pub apps: Vec<CatalogApp>,
    pub total: usize,
}

/// Body of `POST /computers/{id}/desktop/launch`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct LaunchRequest {
    /// Required: the id or name of an app, or the name of a program.
    pub app_name: Option<String>,
    /// The same, for clients that say it so.
    pub app: Option<String>,
}
