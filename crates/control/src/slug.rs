//! Slugs: the part of a computer's name that can stand in a host name.

/// Room for `65535-` before it and `-999999` behind it in a DNS label of 63.
const LONGEST: usize = 48;

/// A slug for `name`; never empty, only `a-z`, `0-9` and single inner hyphens.
pub(crate) fn slugify(name: &str) -> String {
    let mut slug = String::new();
    for character in name.chars() {
        if slug.len() >= LONGEST {
            break;
        }
        if character.is_ascii_alphanumeric() {
            slug.push(character.to_ascii_lowercase());
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_end_matches('-');
    let leading_number =
        slug.split('-').next().is_some_and(|first| first.bytes().all(|b| b.is_ascii_digit()));
    // `3000-web` as a slug could not be told from port 3000 of the computer `web`.
    if slug.is_empty() {
        "computer".to_owned()
    } else if leading_number {
        format!("c{slug}")
    } else {
        slug.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::slugify;

    #[test]
    fn names_become_host_labels() {
        let cases = [
            ("my-computer", "my-computer"),
            ("My Computer!", "my-computer"),
            ("  --a--b--  ", "a-b"),
            ("日本", "computer"),
            ("", "computer"),
            ("3000-web", "c3000-web"),
            ("42", "c42"),
            ("3d printer", "3d-printer"),
        ];
        for (name, slug) in cases {
            assert_eq!(slugify(name), slug, "{name:?}");
        }
        assert!(slugify(&"x".repeat(500)).len() <= super::LONGEST);
    }
}
