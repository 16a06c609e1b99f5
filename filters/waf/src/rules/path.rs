//! Paths, files and URLs that a server should not follow.

use super::{Rule, rules};
use crate::inputs::{EVERYWHERE, Place, Places, VALUES};

const PATH: Places = Places::of(&[Place::Path]);
const FIELDS: Places = Places::of(&[Place::Arg, Place::ArgName, Place::Cookie, Place::UrlHeader, Place::FileName]);
const FILES: Places = Places::of(&[Place::FileName]);

/// Rules 2000 to 2999.
pub const RULES: &[Rule] = rules! {
    2001 Traversal Critical "several steps up the directory tree" on VALUES, view Path,
        any [".."],
        pattern r#"(?:^|[^.\w])\.{2,4};?[/\\][^ "'<>]{0,60}?(?:[^.\w]|^)?\.{2,4};?[/\\]"#,
        hits ["../../etc", "..\\..\\boot", "%252e%252e/%252e%252e/", "/a/b/../../c", "....//....//x", "a%c0%af%c0%ae%c0%ae%c0%af%c0%ae%c0%ae%c0%afb", "x=/..;/..;/manager"],
        misses ["../style.css", "wait... and see .../x", "a..b/c..d/", "1../2../3"];

    2002 Traversal Warning "step up the directory tree" on FIELDS, view Path,
        any [".."],
        pattern r"(?:^|[^.\w/]|[^.\w]/|^/)\.{2,4};?(?:/|$)|\w/\.\.$",
        hits ["../secret", "dir/..", "%2e%2e%2fsecret"], misses ["a...", "x../y", "version..2"];

    2003 Traversal Critical "dots and slashes in a disguise" on VALUES, view Base,
        any ["..", "%", "0x2e", "??", "/", "\\"],
        pattern r"(?:\.\.|0x2e0x2e)(?:%[0-9a-z]{2}|%u[0-9a-f]{4}|0x2f|0x5c|[\xc0\xc1\xe0\xf8\xfc\x01][^ ]{1,3}){1,3}(?:\.\.|0x2e0x2e|etc|boot\.ini|win(?:dows|nt))|(?:[\xc0\xc1].|[\xe0\xf8\xfc]\x80.{1,4}){2}(?:/|\\|%)[^ ]{0,12}(?:etc|boot\.ini|windows|[\xc0\xc1\xe0\xf8\xfc])|(?:\?\?|%[0-9a-f]{0,2}){1,3}(?:%u[0-9a-f]{4}|/|\\).{0,64}(?:etc.{0,6}passwd|etc.{0,6}issue|boot\.ini|windows.{0,6}system32)",
        hits ["pic..%bg%qf..%bg%qfetc", "0x2e0x2e0x2f0x2e0x2e0x2fetc", "..%c0%2f../etc%bg%qf..%bg..", "pic=??%u2216??%u2216boot.ini"],
        misses ["50%..60%", "what?? 100%", "caf\u{e9}.. %d"];

    2004 Traversal Critical "system file" on EVERYWHERE, view Path,
        any ["etc", "/proc", "sys/", "debug.log", "error.log", "errors.log", "var/", "boot.ini", "win.ini", "windows", "winnt/", "system32", "/root/", "/dev/", "autoexec.bat", "system.ini", "/.ssh", "id_",
             "ntuser.dat", "php.ini", "my.cnf", "httpd.conf", "usr/", "sam", "/opt/lampp", "xampp"],
        pattern r"etc(?:%[0-9a-z]{2}|[^a-z ]){1,8}(?:passwd|shadow|group|gshadow|hosts|hostname|issue|motd|fstab|crontab|sudoers|resolv\.conf|my\.cnf|ssh/|apache2?/|httpd/|nginx/|php[0-9]?|mysql/|security/|pam\.d|cron\.|init\.d|ssl/|environment|profile|inittab|mtab|networks|os-release|redhat-release|debian_version|lsb-release|vsftpd|ftp|proftpd|pure-ftpd|logrotate|samba/|sysconfig/|network/|exports|services|passwd)|/proc/(?:self|version|cpuinfo|mounts|net|sched_debug|\d+)\b|(?:^|\.\./|[=:>])/{0,3}var/(?:log|mail|spool|lib/(?:mysql|php|mlocate)|run/secrets|cpanel|www/logs|apache)/?|(?:\.\./|=)/{0,3}usr/(?:local/(?:apache|etc|nginx|php|mysql|cpanel|pgsql|www)|pkgsrc/|s?bin/\w|etc/|apache|home/)|^/?sys/(?:class|kernel|devices|module|block)\b|[ =]/sys/(?:class|kernel|devices|module|block)\b|wp-content/(?:debug|errors?)\.log|boot\.ini\b|\bwin\.ini\b|windows(?:%[0-9a-z]{2}|[^a-z]){1,6}(?:system32|repair|win\.ini|system\.ini|php\.ini|panther)|winnt/|system32/(?:config|drivers|cmd\.exe)|/root/\.|/dev/(?:tcp|udp|shm)/|autoexec\.bat|/\.ssh/|\bid_(?:rsa|dsa|ecdsa|ed25519)\b|ntuser\.dat|(?:/|^)php\.ini\b|(?:/|^)my\.cnf\b|(?:/|^)httpd\.conf\b|/opt/lampp/|\bxampp/",
        hits ["/sys/class/net", "/etc/passwd", "file=..\\..\\windows\\system32\\drivers\\etc\\hosts", "/proc/self/maps", "etc%bg%qfissue", "../var/log/syslog", "C:\\boot.ini"],
        misses ["fetch the hosts", "etc. and hosts", "/processing/self", "sketches/group", "/variety/log", "see /usr/bin/pinentry and /var/mail"];

    2005 Traversal Critical "file of the application's own" on VALUES, view Path,
        any [".git", ".svn", ".hg", ".env", ".htaccess", ".htpasswd", ".aws", "web-inf", "meta-inf", "web.config", "wp-config", "config.inc.php",
             ".ds_store", ".bash_history", ".mysql_history", ".npmrc", ".docker", "configuration.php", "localsettings.php", "settings.py", ".pgpass", ".netrc", "appsettings.json", ".vscode", ".idea"],
        pattern r"(?:^|/)\.(?:git(?:/|$)(?:config|head|index|objects|refs|logs)?|svn/(?:entries|wc\.db)|hg/(?:store|hgrc)|env(?:\.(?:local|prod|production|dev|backup|bak))?$|htaccess|htpasswd|aws/(?:credentials|config)|ds_store$|bash_history|mysql_history|npmrc$|docker/config|pgpass|netrc|vscode/sftp|idea/workspace)|(?:^|/)(?:web-inf|meta-inf)/|(?:^|/)web\.config\b|wp-config(?:\.php|\.bak|\.txt|\.old)|config\.inc\.php|\.\./.{0,40}(?:configuration\.php|localsettings\.php|settings\.py|appsettings\.json)",
        hits ["/.git/config", "/.env", "..\\WEB-INF\\web.xml", "/wp-config.php.bak"],
        misses ["/docs/git/config", "/environment", "a.environment", "/about/web-information/"];

    2006 Traversal Critical "stream wrapper" on VALUES, view Path,
        any ["php:/", "data:/", "expect:/", "phar:/", "zip:/", "file:/", "netdoc:", "glob:/", "ogg:/", "ssh2.", "zlib:", "compress.", "rar:/", "jar:", "gopher:", "dict:/", "ldap", "tftp:/"],
        pattern r#"\bphp:/{1,2}(?:filter|input|fd|memory|temp|output|stdin)|\bdata:/{1,2}text|\bexpect:/|\bphar:/|\bzip:/|(?:^|[^a-z.])file:/{1,3}[a-z0-9.%]|\bnetdoc:/?|\bglob:/|\bssh2\.(?:exec|shell|sftp)|\bzlib:/?|\bcompress\.(?:zlib|bzip2):|\brar:/|\bjar:(?:http|file|ftp)|\bgopher:/|\bdict:/|\bldaps?:/{1,2}[^/]|\btftp:/"#,
        hits ["php://filter/convert.base64-encode/resource=index", "file:///srv/secret", "gopher://127.0.0.1:6379/_x", "expect://id"],
        misses ["https://example.com/php", "profile:/a", "a file: the one", "data:image/png;base64,AA"];

    2007 Traversal Critical "network share" on VALUES, view Base,
        any ["\\\\"],
        pattern r"^\\\\[\w.:\[\]?-]+\\[\w$.]+(?:\\|$)",
        hits ["\\\\10.0.0.7\\d$\\backup", "\\\\evil.example\\share\\x.dll"], misses ["a\\\\b\\c", "\\\\n is a newline"];

    2008 Forgery Critical "cloud metadata or loopback in a disguise" on FIELDS.and(Places::of(&[Place::Body])), view Base,
        any ["169.254.169.254", "metadata.google", "100.100.100.200", "://0x", "://2130706433", "://[::", "://0/", "://017700", "latest/meta-data", "a9fe", "fd00:ec2::254", "169.254.170.2", "docker.internal", "containers.internal", "kubernetes.default"],
        pattern r"169\.254\.169\.254|169\.254\.170\.2|metadata\.google\.internal|100\.100\.100\.200/|://0x7f|://0xa9fe|://2130706433|://\[::(?:1|ffff:)|://0/|://017700|latest/meta-data|\[?fd00:ec2::254|a9fe:a9fe|\b(?:host|gateway)\.(?:docker|containers)\.internal\b|\bkubernetes\.default\b",
        hits ["http://169.254.169.254/latest/meta-data/", "http://2130706433/", "http://[::ffff:7f00:1]/x"],
        misses ["http://192.168.1.1/", "latest metadata", "https://example.com/0/"];

    2009 Forgery Critical "remote script to include" on FIELDS, view Base,
        any ["http", "ftp"],
        pattern r"^(?:https?|ftps?)://[^/ ]+/[^?# ]*\.(?:php\d?|phtml|txt|jsp|asp|aspx|sh|pl|py|cgi|exe|inc|dat|gif|jpg)\?{1,2}$|^(?:https?|ftps?)://\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?/[^?# ]*\.(?:txt|php|sh|dtd|exe|ps1|elf)$",
        hits ["http://evil.example/shell.txt?", "ftp://198.51.100.7/x.php"],
        misses ["https://example.com/readme.txt", "https://example.com/a.php?x=1"];

    2010 Traversal Critical "server-side script as an upload" on FILES, view Base,
        any ["php", "pht", "phar", "jsp", "asp", "asax", "ashx", "asmx", "cer", ".htaccess", ".user.ini", "cgi", "war", "cfm", "shtml", "asa"],
        pattern r"\. ?(?:php\d?|phtml|phar|phps|pht|jspx?|jspf|aspx?|asax|ashx|asmx|cer|asa|cgi|war|cfm|shtml)(?:$|[.;:% /\\]|::\$data)|\.htaccess|\.user\.ini",
        hits ["shell.php", "shell.php.jpg", "x.asp;.jpg", "x.jsp%00.png"], misses ["photo.jpg", "my.php-notes.txt", "jasper.png"];

    2011 Traversal Critical "dot segments in the path, encoded" on PATH, view Plain,
        any ["..", "%2e"],
        pattern r"(?:/\.\.;?){2,}[/;]|/\.\.;/",
        hits ["/a/..;/..;/manager/html", "/x/..;/admin"], misses ["/a/../b", "/a..b/"];

    2012 Traversal Critical "step out of a directory to a script or a secret" on VALUES, view Path,
        any ["../"],
        pattern r"(?:^|[/=])(?:\.\./)[\w./-]{0,60}(?:\.(?:php|inc|ini|conf|cfg|log|bak|sql|db|key|pem|passwd|yml|yaml|properties|xml|pl|sh|exe)|_log|passwd|shadow|/limits)$",
        hits ["../admin/config.php", "img/..\\..\\private.key"], misses ["../style.css", "../index.html"];
};
