//! SQL injection, and injection into LDAP, document databases and XML.

use super::{Rule, rules};
use crate::inputs::{Place, Places, VALUES};

const FIELDS: Places =
    Places::of(&[Place::Arg, Place::ArgName, Place::Path, Place::Cookie, Place::UrlHeader, Place::FileName]);
const LOOSE: Places = FIELDS.and(Places::of(&[Place::Body, Place::UserAgent]));
/// Without the headers that tell where a visitor came from: whoever searched for SQL elsewhere brings it along.
const DIRECT: Places = Places::of(&[
    Place::Arg,
    Place::ArgName,
    Place::Path,
    Place::Cookie,
    Place::FileName,
    Place::Body,
    Place::UserAgent,
]);
const NAMES: Places = Places::of(&[Place::ArgName]);

/// Rules 4000 to 4999.
pub const RULES: &[Rule] = rules! {
    4001 Sql Critical "UNION SELECT" on LOOSE, view Sql,
        any ["union", "intersect", "except", "minus"],
        pattern r#"(?:union|intersect|except|minus)[ ("'`+;)\xa0]*(?:(?:all|distinct|distinctrow)[ ("'`+)\xa0]*)?(?:select[ +(\xa0]*[^a-z \xa0\x80-\xff]|select[ +(\xa0]+[\w.]+ ?(?:[,(;#|]|--|from\b|$)|select[ \xa0]*(?:null|user|concat|\w+\(|all |distinct )|values ?\()|^ ?union (?:all )?select ?$"#,
        hits ["1 union select 1,2", "1/**/UNION/**/ALL/**/SELECT(1)", "1e1union(select 1)", "' UNION ALL SELECT NULL#"],
        misses ["the union of all we select", "select a union", "trade union selected", "reunion selection"];

    4002 Sql Critical "SELECT with columns and source" on DIRECT, view Sql,
        any ["select"],
        pattern r#"\bselect[ (+]+(?:(?:all|distinct|top \d+)[ (]+)?(?:\*|count ?\(|[\w.`"\[\]@$'*]+ ?(?:,|\|\|) ?[\w.`"\[\]@$'*()|, ]{1,120}?|(?:[\w.]+ ?\([^)]{0,80}\)[, ]*)+|null|@@?\w+|['"]?\d+['"]?|[\w.`@"]+)[ )]+from[ (`"\[+]+[\w.`"\[\]$]+ ?(?:$|[;),#\-'"]|where\b|limit\b|order by|group by|union\b|having\b|join\b|as\b|\w{1,8}\)|/\*)"#,
        hits ["select * from users", "(select password from users)", "select count(*) from information_schema.tables where 1", "SELECT a, b FROM t limit 1"],
        misses ["select all of it from time to time", "select one from the list below", "please select a value from our menu"];

    4003 Sql Critical "nested SELECT" on DIRECT, view Sql,
        any ["select"],
        pattern r#"\( ?select(?:[ (]+(?:\*|[\d'"@~]|sleep|count|concat|group_concat|char|user|database|version|null|case|if|ascii|substr|top \d|distinct|load_file|chr|[\w.`]+ ?(?:,|\(| from\b))|\([\d'"@])|['"\d)] ?(?:\|\||[-+*/%&^|=<>!]+|and|or|in|like) ?\(* ?select[ ('"@\d]|\bselect ?\( ?['"\w@]+ ?\) ?from|\bselect ?(?:@@|user ?\(|version ?\(|database ?\(|sleep ?\(|pg_sleep|load_file|char ?\(|chr ?\(|concat ?\(|case when|extractvalue|updatexml|if ?\()|\bselect \d+ ?(?:else|,\d|;|--|#|$)|^['"]?;? ?select \d+ (?:from|where|union)"#,
        hits ["(select(7)from(select(sleep(3)))t)", "1=(select count(*) from x)", "' || (select 1)", "select version()"],
        misses ["(select one)", "select a size (selected)", "if you select 3 items"];

    4004 Sql Critical "condition that is always true or false" on DIRECT, view Sql,
        any ["or", "and", "||", "&&", "having", "where", "when", "if", "not", "rlike"],
        pattern r#"(?:\b|['"\d)] ?)(?:or|and|xor|having|where|when|if|\|\||&&|rlike|not)[ (+!~'"-]*(?:not[ (]+)?['"(]*(?:0x[0-9a-f]+|\d+)['")]* ?(?:=|<=>|<>|<|>|!=|>=|<=|\blike\b|\bin\b ?\(|\brlike\b|\bregexp\b|\bis\b|\bbetween\b|\bdiv\b)[ ('"!~-]*(?:0x[0-9a-f]+|\d+|true|false|null|select|row|char|ascii|length)|['"] ?\)*(?: ?\)* ?)(?:or|and|xor|\|\||&&)[ (+!~'"-]*(?:true|false|\d+)\b['"]? ?\)* ?(?:--|#|;|/\*|$)|\b(?:or|and|xor|\|\||&&) ?\(?(?:['"][^'"]{0,20}['"]|@\w+) ?(?:=|<|>|<>|!=|\blike\b) ?['"(@\d]|^-?\d+['"]? ?\)* ?(?:or|and|xor|\|\||&&) ?(?:not |!)?(?:true|false)\b|^['"]?\d+['"]? ?(?:=|<|>|<>|!=) ?['"]?\d+['"]? (?:or|and|xor|\|\||&&) "#,
        hits ["1 or 1=1", "1' and '1'='1", "x) AND 7=7 AND y", "' or 2>1--", "1 || 1=1 --", "' or true--", "having 1=1", "id=1 and 1<>2"],
        misses ["C'or 2nd place", "1 or 2 apples", "and 5 more", "rock and 3 rolls = fun", "where 1 is best", "terms & conditions"];

    4005 Sql Critical "condition after a closing quote" on LOOSE, view Sql,
        any ["'", "\"", "`"],
        pattern r#"['"] ?\)* ?(?:\b|\|\||&&)(?:or|and|xor|\|\||&&|having|where|not|div|like|rlike|regexp|between|is)\b?[ (+!~'"`@-]*[\w.@$`]*['"`)]* ?(?:=|<=>|<>|<|>|!=|>=|<=|:=|\bnot like\b|\blike\b|\bin ?\(|\brlike\b|\bregexp\b|\bis (?:not )?null|\bbetween\b|\bsounds like\b|\bexists ?\()|['"] ?\)* ?(?:\|\||&&) ?['"`(\d]|['"] ?\)* ?(?:or|and) ?(?:exists ?\(|not ?\(|\w+ ?\([^)]*\) ?[=<>]|\w+\([^)]*\) ?(?:--|#))|^[^'"]{0,40}['"] ?\)*(?:or|and|xor|\|\||&&) ?\(*['"][^'"]{0,40}$"#,
        hits ["' or 'a'='a", "x' or uid like '%", "\") or (\"a\"=\"a", "'||'1'='1", "' and exists(select 1)", "' or sleep(2) #"],
        misses ["it's this or that", "'this' and 'that'", "O'Brien and sons", "say \"yes\" or \"no\"", "'a' & 'b'"];

    4006 Sql Critical "quote and comment that end a statement" on FIELDS, view Base,
        any ["--", "#", ";%00", "/*"],
        pattern r#"^[^'"`<>{}\[\]]{0,40}['"`] ?\)* ?;? ?(?:--[ +-]?[^a-z>]*|#|/\*[^*]{0,20})$|['"] ?\)* ?; ?--|^\d+(?:[*+/ -]\d+)? ?\)* ?(?:-- ?-?|/\*)$"#,
        hits ["admin'--", "admin' #", "x') -- -", "1'; --", "a'/*"],
        misses ["it's #1", "well-known--thing", "a -- b", "\"quoted\"", "#anchor"];

    4007 Sql Critical "only quotes and operators" on FIELDS, view Base,
        any ["'", "\""],
        pattern r#"^[\w@.]{0,20}['"] ?(?:=|<=>|<>|<|>|!=|\|\|?|&&?|\^|\*|/|%|-|\+|like|div|mod|is|rlike|regexp) ?(?:['"][\w@.]{0,20}['"]?|0x[0-9a-f]+|\d+|\(+['"]?\d*['"]?\)+|0|true|false)(?: ?(?:--|#).{0,4}|;)?$"#,
        hits ["'='", "a'='b", "'-'", "'=0--+", "'^'1", "' like '"],
        misses ["'a'", "\"x\", \"y\"", "rock'n'roll", "5'10\""];

    4008 Sql Critical "function that delays, leaks or runs things" on LOOSE, view Sql,
        any ["sleep", "benchmark", "waitfor", "dbms_", "utl_", "extractvalue", "updatexml", "xp_", "sp_", "load_file", "outfile", "dumpfile", "randomblob", "load_extension",
             "group_concat", "information_schema", "sqlite_master", "sqlite_schema", "pg_", "sysobjects", "syscolumns", "sys.", "mysql.", "@@", "json_", "openrowset", "opendatasource", "make_set", "procedure analyse",
             "current_user", "session_user", "system_user", "lo_import", "lo_export", "copy ", "xmltype", "ctxsys", "ordsys", "all_tables", "user_tables", "msysobjects", "v$version", "all_users", "get_lock", "generate_series", "dblink", "varbinary", "all_", "user_", "name_const", "gtid_sub", "st_latfromgeohash", "polygon", "linestring", "elt", "schema_name", "table_schema", "db_name", "sqlite_", "select", "msys"],
        pattern r#"\bsleep ?\( ?['"]?\d|\b(?:or|and|select|if|,|\|\||=) ?\(?sleep ?\(|\bbenchmark ?\([^,]{1,40},|\bwaitfor (?:delay|time)\b|\bdbms_(?:pipe|lock|utility|ldap|xmlgen|java|session|sql|assert)\w*\.|\butl_(?:inaddr|http|file|tcp|smtp|raw)\b|\b(?:extractvalue|updatexml) ?\(|\bxp_(?:cmdshell|dirtree|reg\w+|fileexist|subdirs|availablemedia)\b|\bsp_(?:executesql|oacreate|oamethod|configure|makewebtask|password|addextendedproc|start_job)\b|\bload_file ?\(|\binto (?:outfile|dumpfile)\b|\brandomblob ?\(|\bload_extension ?\(|\bgroup_concat ?\(|\binformation_schema\b|\bsqlite_(?:master|schema)\b|\bpg_(?:sleep|catalog|user|shadow|read_file|ls_dir|database|tables|stat_activity)\b|\bsys(?:objects|columns)\b|\bsys\.(?:objects|tables|columns|databases|user_|login_user|database_name|fn_|xp_|all_|dba_)|\bmysql\.(?:user|db|innodb)|@@(?:version|hostname|datadir|basedir|servername|global|spid|language|version_compile\w*)\b|\bjson_(?:extract|depth|keys|value|array|object|length|contains|quote|unquote|type|valid|search|storage_size|overlaps|pretty|merge)\w* ?\( ?['"(]|\bopenrowset ?\(|\bopendatasource ?\(|\bmake_set ?\(|\bprocedure analyse ?\(|(?:select|[=,(+]|\|\||and|or) ?(?:current_user|session_user|system_user)\b|\blo_(?:im|ex)port ?\(|\bcopy [\w( )]+(?:from|to) (?:program|'/)|\bxmltype ?\(|\bctxsys\.|\bordsys\.|\bfrom (?:all|user)_(?:tables|users|tab_columns)\b|\bmsysobjects\b|\bv\$version\b|\bget_lock ?\( ?'|\bgenerate_series ?\( ?\d|\bdblink(?:_connect)? ?\(|\bvarbinary ?\(|\bname_const ?\(|\bgtid_sub(?:set|tract) ?\(|\bst_latfromgeohash ?\(|\b(?:multi)?(?:polygon|linestring) ?\( ?\(? ?select|\belt ?\( ?\d+ ?[=,]|\bschema_name\b.{0,40}from|\btable_schema ?(?:=|in|like)|\bdb_name ?\( ?[)\d]|\bsqlite_(?:version|compileoption\w*|source_id) ?\(|\bselect ?\(? ?(?:user|current_user|database|version) ?\(|\bmsys(?:access)?objects\b"#,
        hits ["1;waitfor delay '0:0:5'", "' and updatexml(1,concat(0x7e,version()),1)", "if(1=1,sleep(5),0)", "exec master..xp_cmdshell 'dir'", "randomblob(99999999)", "benchmark(9999999,sha1(2))=1", "@@version"],
        misses ["sleep (well)", "the information schemas", "json_extract is a function", "current_user_id", "user@@example"];

    4009 Sql Critical "further statement" on LOOSE, view Sql,
        any ["drop", "insert", "update", "delete", "alter", "create", "truncate", "exec", "declare", "shutdown", "grant", "revoke", "replace", "merge", "select", "set", "rename", "begin", "call", "handler"],
        pattern r#"; ?(?:drop|alter|create|truncate|rename) +(?:table|database|schema|view|user|function|procedure|index|trigger|login|role)\b|; ?insert +(?:ignore +)?into\b|; ?update +[\w.`\[\]"]+ +set\b|; ?delete +from\b|; ?(?:exec|execute)(?: +|\()(?:master|sp_|xp_|\(|@|immediate|'|\w+\.\w+)|; ?declare +@?\w+ |; ?shutdown\b ?(?:;|--|with|$)|; ?(?:grant|revoke) +\w+.{0,40} (?:to|from|on) |; ?select[ (*]+(?:[*@('"\d]|[\w.]+ ?[(,]|[\w.]+ from )|; ?set +@\w+ ?=|; ?call +\w+\(|; ?handler +\w+ +open|\bdrop +(?:table|database|schema|view|function|procedure) +(?:if +exists +)?[\w.`"\[]+ ?(?:;|--|#|$|cascade)|\binsert +into +[\w.`"\[\]]+ ?(?:\([^)]*\) ?)?(?:values? ?\(|select\b)|\bupdate +[\w.`"\[\]]+ +set +[\w.`"\[\]]+ ?=|\bdelete +from +[\w.`"\[\]]+ ?(?:where\b|;|--|#|$)|\btruncate +table +\w|\bdeclare +@\w+ +(?:n?varchar|int|char|table|cursor)|['"] ?\)* ?grant +\w+ +to\b|\bexec(?:ute)? +(?:master|msdb)\.|\bcreate +(?:or replace )?(?:table|function|user|procedure|trigger) +\w+ ?(?:\(|identified|as\b|returns)|\balter +(?:table|user|database|login) +\w+ +(?:add|drop|set|identified|with|modify|rename)"#,
        hits ["1; drop table users", "x'; insert into a values (1)", "1;declare @c varchar(255)", "' grant connect to name; --", "; shutdown--", "update users set admin=1"],
        misses ["DELETE 12 items", "drop me a line; select your size", "update the set", "create table tennis rules", "insert into the slot"];

    4010 Sql Critical "ORDER BY or GROUP BY that ends a statement" on LOOSE, view Sql,
        any ["order by", "group by", "limit", "procedure", "order+by", "orderby"],
        pattern r#"(?:['")]|^-?\d+|^) ?\)* ?(?:order by|group by) +(?:\d+|null|\(|if ?\(|rand ?\(|[\w.]+)(?: ?, ?\d+)*(?: +having\b[^a-z]| ?(?:asc|desc))? ?(?:--|#|/\*|;|$)|\border by \d+ ?(?:--|#|/\*)|\blimit \d+ ?, ?\d+ ?(?:--|#|/\*|into|union|procedure)|\border by (?:if ?\(|\(select|case when|rand ?\()|\bgroup by [\w.`]+ having"#,
        hits ["1' order by 5", "1 order by 10--", "7) order by 3#", "') group by x having 1=1"],
        misses ["please order by 5 pm today", "we order by phone", "group by size and colour"];

    4011 Sql Critical "CASE or IF expression" on LOOSE, view Sql,
        any ["case", "if", "decode", "ascii", "ord", "hex", "length", "substr", "mid", "left", "right", "lower", "upper"],
        pattern r#"\bcase(?: +[\w'".()]+)? *\(? ?when\b.{1,120}\bthen\b.{1,80}(?:\belse\b|\bend\b)|\bi?if ?\( ?\(? ?(?:\d+ ?[=<>]+ ?\d+|ascii ?\(|ord ?\(|length ?\(|substr|mid ?\(|\w+\(\)|exists ?\(|select)[^)]*.{0,80},|\bif ?\(?\d+ ?= ?\d+\)? ?select|\bdecode ?\( ?\(?select|\b(?:ascii|ord|hex|unhex|length|char_length|substr|substring|mid|left|right|lower|upper) ?\( ?\(? ?(?:select\b|user ?\(|database ?\(|version ?\(|substr|mid ?\(|current_user|@@|load_file)"#,
        hits ["case when 1=1 then 1 else 0 end", "if(ascii(substr(user(),1,1))>64,1,0)", "IF(3=3) SELECT 3", "substring((select x),1,1)"],
        misses ["in case you want when then", "if (you like) it, then", "left (me)", "mid(week)"];

    4012 Sql Critical "string built from codes or pieces" on LOOSE, view Sql,
        any ["char", "chr", "concat", "0x", "cast", "convert", "unhex"],
        pattern r#"\b(?:n?char|chr) ?\( ?\d+ ?(?:,|\) ?(?:\|\||\+|,|\)))|\bconcat(?:_ws)? ?\( ?(?:0x|'|"|@@|char|chr|\(|user|database|version|\w+ ?, ?(?:0x|char|'))|\b(?:select|union|where|and|or|like|by|then) ?\(?0x[0-9a-f]{6,}|\b(?:cast|convert) ?\( ?(?:\(|0x|@@|'|"|user|version|\(?select|[\w.*() ]+ +as +(?:n?char|n?varchar|int|integer|numeric|binary|signed|unsigned|decimal|text|xml|json))|\bconvert ?\( ?(?:int|n?varchar|varbinary) ?,|\bunhex ?\("#,
        hits ["char(97,98)", "chr(65)||chr(66)", "concat(0x3a,user())", "cast((select 1) as int)", "convert(int,@@version)"],
        misses ["a char (1)", "broadcast (live)", "convert (money)", "concatenate this"];

    4013 Sql Warning "quote that closes into SQL" on FIELDS, view Sql,
        any ["'", "\""],
        pattern r#"(?:^|[\w)%])['"] ?\)* ?(?:;|\|\||&&|--|#|/\*|\b(?:or|and|union|select|having|order by|group by|where|like|limit|procedure|if|waitfor|exec|in|rlike|regexp|xor|div)\b[ (]*[('"@\d\w-])"#,
        hits ["1' or x", "a') and (b", "5';x"], misses ["it's fine", "don't", "'quoted'"];

    4014 Sql Warning "SQL function of no use to clients" on FIELDS, view Sql,
        any ["version", "database", "user", "schema", "md5", "ascii", "substr", "hex", "rand", "exp", "floor", "pi", "ord", "sha1", "rlike", "rownum", "dual", "sysdate", "now"],
        pattern r"\b(?:version|database|user|schema|current_database|sysdate|now|rand|pi) ?\( ?\)|\b(?:md5|ascii|substr|substring|hex|exp|floor|ord|sha1) ?\( ?['(~@\d\w]|\bfrom dual\b|\brownum ?[<=]|\brlike ?\(",
        hits ["user()", "md5(1)", "x from dual"], misses ["the user (you)", "version 2", "dual core"];

    4015 Sql Error "comment used to break up SQL" on FIELDS, view Base,
        any ["/*!", "/**/", "*/"],
        pattern r"/\*!\d*|(?:union|select|and|or|from|where|insert|sleep|concat|information_schema|order|by)/\*.{0,60}?\*/|/\*.{0,60}?\*/ ?(?:union|select|and|or|from|where|by|like)\b",
        hits ["un/*!50000ion*/", "or/**/x", "select/*a*/b"], misses ["/* css */", "a/*b*/c", "*/*"];

    4016 Sql Critical "condition followed by an SQL comment" on FIELDS, view Sql,
        any ["--", "#", "/*"],
        pattern r#"(?:\b(?:or|and|where|having|like|union|as|by)\b|\|\||&&)[^'"<>]{0,10} ?['"(]?[\w.]{1,20}['")]? ?(?:=|<|>|!=|<>|like) ?['"(]?[\w.%]{1,20}['")]? ?\)* ?(?:--|#$|/\*)"#,
        hits ["7 or a=a-- ", "7 and b=b#", "as t where c=c--"], misses ["a and b = c", "x=y -- z", "color=#fff"];

    4017 Sql Critical "JSON operator of a database" on LOOSE, view Sql,
        any ["::", "->", "@>", "<@", "?&", "?|", "@?", "@@", "#>"],
        pattern r#"['")\]] ?::(?:jsonb?|text|int|bool|varchar|regclass)\b|['"][}\]]['"](?: ?::jsonb?)? ?(?:->>?|@>|<@|\?[&|]|@\?|@@|#>>?)|->>? ?'[$\w]|['"}] ?(?:@>|<@) ?['"{]"#,
        hits ["or '{\"b\":2}'::jsonb <@ '{\"a\":1}'", "'{\"a\":1}' -> '$.a' = 1", "x->>'password'"],
        misses ["a -> b", "std::vector<int>", "{\"a\":\"b\"}", "() => {}"];

    4101 Query Critical "operator of a document database" on NAMES, view Base,
        any ["$ne", "$gt", "$lt", "$regex", "$where", "$in", "$nin", "$exists", "$or", "$and", "$not", "$eq", "$expr", "$func", "$elemmatch", "$nor"],
        pattern r"(?:\[|^|\.)\$(?:ne|gte?|lte?|regex|where|n?in|exists|n?or|and|not|eq|expr|func|elemmatch)\]?(?:\[\d*\])?$",
        hits ["user[$ne]", "$where", "a[$regex]"], misses ["price[gte]", "$filter", "$orderby"];

    4102 Query Critical "query code of a document database" on VALUES, view Base,
        any ["$where", "$or", "$and", "$ne", "$gt", "$regex", "db.", "this.", "new date", "date", "$func", "$lt", "$nin", "$in", "$nor", "$exists", "$eq", "$not", "=="],
        pattern r#"['"]?\$where['"]? ?[:=]|['"{, ]\$(?:or|and|nor|nin|in)['"]? ?: ?\[|[{,] ?['"]?\$(?:ne|gte?|lte?|regex|exists|func|eq|not)['"]? ?:|\bdb\.\w+\.(?:insert|find|drop|remove|update|save|aggregate|count|createuser|eval|findone)\w*\(|\bthis\.\w+ ?(?:==|!=|\.match\(|\.test\()|['"]? ?(?:\|\||&&) ?(?:this\.\w|['"]?1['"]? ?==)|\b(?:do ?\{|while ?\() ?.{0,60}new date|date ?\( ?\) ?; ?(?:do|while)"#,
        hits ["1, $where: '2 > 1'", "{\"$ne\": null}", "db.users.drop()", "x', $or: [{}, {'k':'v", ";var t=Date(); do { u = new Date() } while (u - t < 9)"],
        misses ["the $order: 5", "where: here", "database.find it", "$in pocket"];

    4103 Query Critical "LDAP filter" on FIELDS, view Base,
        any ["(", ")", ":2.5.13"],
        pattern r"\) ?\( ?[|&!]|\( ?[|&!] ?\( ?[\w&|!(]|\*\) ?\(\w+ ?=|\)\(\w+=\*|\(objectclass ?=|\((?:uid|cn|userpassword|mail|sn|samaccountname|memberof) ?[~<>]?=|:2\.5\.13\.\d+:?=|^\*\)+",
        hits ["a*)(|(objectclass=b))", "(&(uid=root)(a=b))", "admin)(&)", "pin:2.5.13.18:=9"],
        misses ["f(x) (y)", "(a) & (b)", "call(me)(maybe)"];

    4104 Query Critical "XML with external entities" on VALUES, view Base,
        any ["<!entity", "<!doctype", "xi:include", "<xsl:", "xsi:schemalocation", "xmlns:xi", "<!element"],
        pattern r#"<!entity[^>]{0,200}(?:system|public|['"%])|<!doctype +[\w:.-]+ *(?:\[|system|public[^>\[]{0,200}\[|public ['"][^'"]*['"] ['"](?:file|ftp|php|jar|netdoc))|<xi:include|xmlns:xi ?=|<xsl:(?:value-of|include|import|copy-of|script|variable|stylesheet)|xsi:schemalocation ?= ?['"]https?://[^ "'<>]+['"]|<!element \w+ any"#,
        hits ["<!DOCTYPE a [<!ENTITY b SYSTEM \"file:///c\">]>", "<xi:include href=\"x\"/>", "<!DOCTYPE foo SYSTEM \"http://x/e.dtd\">"],
        misses ["<!doctype html>", "<!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0//EN\" \"\">", "entity system"];

    4105 Query Critical "XPath condition" on FIELDS, view Base,
        any ["count", "name", "position", "string-length", "substring", "starts-with", "contains", "last", "text", "/child::", "//"],
        pattern r#"['"] ?\]? ?(?:or|and) +(?:count|name|position|string-length|substring|starts-with|contains|last|text) ?\(|\bcount ?\( ?/(?:child::|/|\*)|/child::\w|\bname ?\( ?/|(?:'|\]) ?\| ?//\w"#,
        hits ["' or count(/*)=1 or 'a'='b", "x' and name(/*[1])='a", "' or position()=1 or '"], misses ["count (all)", "'a' or name it", "my name (is)"];
};
