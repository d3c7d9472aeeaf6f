//! The report: one file, complete without a network, shown by a browser without errors.

use std::fs;
use std::process::Command;

use crate::project::{Project, text};

#[test]
fn a_report_is_one_page_without_a_network_that_a_browser_shows_without_errors() {
    let project = Project::new();
    // No results yet.
    let output = project.command("report").output().unwrap();
    assert!(
        !output.status.success() && text(&output).contains("no results yet"),
        "{}",
        text(&output)
    );
    assert!(project.run().status.success());
    let output = project.command("report").output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let path = project.path("results/micro/small_report.html");
    assert!(text(&output).contains("small_report.html"));
    let page = fs::read_to_string(&path).unwrap();
    assert!(page.len() < 5_000_000, "{} bytes", page.len());
    for part in [
        "how much trainings vary is unknown",
        "undecided",
        "<svg",
        "share of clipped updates",
        "distill-fkld",
    ] {
        assert!(page.contains(part), "no `{part}`");
    }
    // The SVG namespace is not fetched.
    let rest = page.replace("http://www.w3.org/2000/svg", "");
    for address in ["http:", "https:", "src=\"", "@import", "url("] {
        assert!(!rest.contains(address), "{address}");
    }
    // An answer that looks like the end of a script does not end it.
    assert_eq!(page.matches("</script>").count(), 2);

    let browser = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| {
            Command::new(name)
                .arg("--version")
                .output()
                .is_ok_and(|o| o.status.success())
        });
    let Some(browser) = browser else {
        eprintln!("no browser: what the page's script does is not tested");
        return;
    };
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", path.display()))
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    // Text that the page's script has written.
    assert!(
        shown.contains("References: ") && shown.contains(" answers</span>"),
        "{shown}"
    );
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!log.contains("CONSOLE"), "{log}");
}
