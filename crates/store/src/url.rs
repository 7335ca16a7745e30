//! The address of a PostgreSQL database, which may hold a password: it is shown without.

use std::fmt;
use std::str::FromStr;

/// `postgres://user:password@host:port/database`, with libpq's parameters behind `?`.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    text: String,
}

#[derive(Debug, thiserror::Error)]
#[error("the database address does not begin with postgres://: use postgres://USER@HOST/DATABASE")]
pub struct InvalidUrl;

impl DatabaseUrl {
    /// The whole address, for the driver only.
    pub(crate) fn secret(&self) -> &str {
        &self.text
    }
}

impl FromStr for DatabaseUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            Ok(Self { text: text.to_owned() })
        } else {
            Err(InvalidUrl)
        }
    }
}

/// Host and database. Users are left out with their passwords, parameters because one may be a password.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.text.split_once("://").unwrap_or_default();
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
        write!(formatter, "{scheme}://{place}")
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DatabaseUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        for (text, shown) in [
            ("postgres://roost:s3cret@db.example:5433/roost", "postgres://db.example:5433/roost"),
            ("postgres://roost:s3cr@t@db/roost?password=s3cret", "postgres://db/roost"),
            ("postgresql:///roost?host=/run/postgresql&user=u", "postgresql:///roost"),
        ] {
            let url: DatabaseUrl = text.parse().unwrap();
            assert_eq!((url.to_string().as_str(), url.secret()), (shown, text));
            assert_eq!(format!("{url:?}"), format!("DatabaseUrl({shown})"));
        }
    }

    #[test]
    fn other_addresses_are_refused() {
        for text in ["", "roost.db", "sqlite://roost.db", "mysql://host/db", "postgres:/x"] {
            assert!(text.parse::<DatabaseUrl>().is_err(), "{text}");
        }
    }
}
