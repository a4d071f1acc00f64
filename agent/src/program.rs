//! Which file a command names, and what /etc/passwd says about a user, without I/O.

use alloc::format;
use alloc::string::String;

/// Value of `name` in an environment; the last one counts, as in runc.
pub fn variable<'a>(env: &[&'a str], name: &str) -> Option<&'a str> {
    env.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// Files that `program` may mean, in the order in which they are tried: itself if it has a slash,
/// else one per folder of `path` (an empty folder is the current one).
pub fn candidates<'a>(program: &'a str, path: &'a str) -> impl Iterator<Item = String> + 'a {
    let direct = program.contains('/');
    let folders = if direct { "" } else { path };
    folders.split(':').map(move |folder| match folder {
        _ if direct => program.into(),
        "" => format!("./{program}"),
        _ => format!("{}/{program}", folder.trim_end_matches('/')),
    })
}

/// Home directory of user `uid` according to the text of an /etc/passwd.
pub fn home(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let found = fields.next()?.parse() == Ok(uid);
        fields.nth(2).filter(|_| found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_slash_is_itself() {
        assert!(candidates("./run", "/bin:/usr/bin").eq(["./run"]));
    }

    #[test]
    fn folders_are_tried_in_order() {
        let expected = ["/bin/ls", "./ls", "/ls", "/usr/bin/ls"];
        assert!(candidates("ls", "/bin::/:/usr/bin/").eq(expected));
    }

    #[test]
    fn the_last_variable_counts_and_names_are_whole() {
        let env = ["PATHS=/no", "PATH=/a", "PATH=/b"];
        assert_eq!(variable(&env, "PATH"), Some("/b"));
        assert_eq!(variable(&env, "PAT"), None);
    }

    #[test]
    fn home_is_the_sixth_field_of_the_users_line() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nme:x:1000:1000::/home/me:/bin/sh\n";
        assert_eq!(home(passwd, 1000), Some("/home/me"));
        assert_eq!(home(passwd, 0), Some("/root"));
        assert_eq!(home(passwd, 7), None);
    }
}
