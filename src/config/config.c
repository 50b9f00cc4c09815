/* SPDX-License-Identifier: MIT
 *
 * What the user asked for: argv, the account's group in the config file and the URL, merged in that
 * order of precedence. Main thread, at start. Opens no connection and reads no secret.
 */
#include "mailfs/config.h"

#include "config/options.h"
#include "config/url.h"
#include "mailfs/error.h"
#include "mailfs/log.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define GROUP_PREFIX "account "

typedef struct
{
  gboolean helper;       /* called by mount(8): -f and -v mean something else */
  gboolean sloppy;       /* mount -s: unknown options are no error */
  GPtrArray *settings;   /* of char *: name or name=value, in order */
  GPtrArray *positional; /* of const char * */
} Arguments;

static void
arguments_clear (Arguments *arguments)
{
  g_clear_pointer (&arguments->settings, g_ptr_array_unref);
  g_clear_pointer (&arguments->positional, g_ptr_array_unref);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC (Arguments, arguments_clear)

/* The end of a quoted value (context="a,b", as mount(8) writes it) that starts at p, or NULL. */
static const char *
quoted_end (const char *p)
{
  const char *close = *p == '"' ? strchr (p + 1, '"') : NULL;

  return close != NULL && (close[1] == ',' || close[1] == '\0') ? close : NULL;
}

/* Divides a -o list at its commas; "\," is a comma and "\\" a backslash, as libfuse has it. */
static void
split_list (GPtrArray *settings, const char *list)
{
  g_autoptr (GString) item = g_string_new (NULL);
  gboolean in_name = TRUE;

  for (const char *p = list;; p++)
    {
      const char *close;

      if (*p == ',' || *p == '\0')
        {
          if (item->len > 0)
            g_ptr_array_add (settings, g_strdup (item->str));
          g_string_truncate (item, 0);
          in_name = TRUE;
          if (*p == '\0')
            return;
          continue;
        }
      if (*p == '\\' && (p[1] == ',' || p[1] == '\\'))
        p++;
      g_string_append_c (item, *p);
      if (in_name && *p == '=')
        {
          in_name = FALSE;
          close = quoted_end (p + 1);
          if (close != NULL)
            {
              g_string_append_len (item, p + 2, close - p - 2);
              p = close;
            }
        }
    }
}

static gboolean
set_usage (GError **error, const char *what)
{
  g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE, "%s", what);
  return FALSE;
}

static gboolean
unknown_switch (GError **error, const char *text)
{
  g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
               "unknown option %s: mailfs -h shows all of them", text);
  return FALSE;
}

static gboolean
long_switch (MailConfig *config, const char *name, GError **error)
{
  if (strcmp (name, "--help") == 0)
    config->help = TRUE;
  else if (strcmp (name, "--version") == 0)
    config->version = TRUE;
  else if (strcmp (name, "--foreground") == 0)
    config->foreground = TRUE;
  else if (strcmp (name, "--debug") == 0)
    config->debug = TRUE;
  else if (strcmp (name, "--verbose") == 0)
    config->verbose = TRUE;
  else
    return unknown_switch (error, name);
  return TRUE;
}

static gboolean
short_switch (MailConfig *config, Arguments *arguments, char letter, GError **error)
{
  char text[] = { '-', letter, '\0' };

  if (letter == 'h')
    config->help = TRUE;
  else if (letter == 'V')
    config->version = TRUE;
  else if (letter == 's' && arguments->helper)
    arguments->sloppy = TRUE;
  else if (letter == 'f' && arguments->helper)
    config->fake = TRUE;
  else if (letter == 'f')
    config->foreground = TRUE;
  else if (letter == 'd')
    config->debug = TRUE;
  else if (letter == 'v')
    config->verbose = !arguments->helper;
  else if (letter != 'n' || !arguments->helper) /* mount -n: write no mtab; nobody does */
    return unknown_switch (error, text);
  return TRUE;
}

/* One argument that begins with '-' and what belongs to it; moves *i past it. */
static gboolean
parse_switch (MailConfig *config, Arguments *arguments, int argc, char **argv, int *i,
              GError **error)
{
  const char *text = argv[*i];

  if (g_str_has_prefix (text, "--"))
    return long_switch (config, text, error);
  for (const char *letter = text + 1; *letter != '\0'; letter++)
    {
      const char *value;

      if (*letter != 'o' && (*letter != 'N' || !arguments->helper) && *letter != 't')
        {
          if (!short_switch (config, arguments, *letter, error))
            return FALSE;
          continue;
        }
      if (*letter == 't' && !arguments->helper)
        return unknown_switch (error, "-t");
      value = letter[1] != '\0' ? letter + 1 : *i + 1 < argc ? argv[++*i] : NULL;
      if (value == NULL)
        {
          g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE, "-%c needs a value", *letter);
          return FALSE;
        }
      if (*letter == 'o')
        split_list (arguments->settings, value);
      return TRUE;
    }
  return TRUE;
}

static gboolean
parse_arguments (MailConfig *config, Arguments *arguments, int argc, char **argv, GError **error)
{
  g_autofree char *program = argc > 0 ? g_path_get_basename (argv[0]) : NULL;
  gboolean switches = TRUE;

  arguments->settings = g_ptr_array_new_with_free_func (g_free);
  arguments->positional = g_ptr_array_new ();
  arguments->helper = program != NULL && g_str_has_prefix (program, "mount.");
  for (int i = 1; i < argc; i++)
    {
      if (switches && strcmp (argv[i], "--") == 0)
        switches = FALSE;
      else if (!switches || argv[i][0] != '-' || argv[i][1] == '\0')
        g_ptr_array_add (arguments->positional, argv[i]);
      else if (!parse_switch (config, arguments, argc, argv, &i, error))
        return FALSE;
    }
  return TRUE;
}

static gboolean
apply_settings (MailConfig *config, const Arguments *arguments, GError **error)
{
  g_autofree char *base = g_get_current_dir ();

  for (guint i = 0; i < arguments->settings->len; i++)
    {
      const char *setting = g_ptr_array_index (arguments->settings, i);
      const char *equals = strchr (setting, '=');
      g_autofree char *name = equals != NULL ? g_strndup (setting, (gsize)(equals - setting))
                                             : g_strdup (setting);
      gboolean known;

      if (strcmp (name, "config") == 0)
        continue; /* find_config_file () has seen it */
      if (config_option_apply (config, name, equals != NULL ? equals + 1 : NULL, base, &known,
                               error))
        continue;
      if (known)
        {
          g_prefix_error (error, "-o ");
          return FALSE;
        }
      if (!arguments->sloppy)
        {
          g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
                       "-o %s: unknown option, mailfs(5) lists those there are", name);
          return FALSE;
        }
    }
  return TRUE;
}

/* From -o config=, or the usual place. */
static char *
find_config_file (const Arguments *arguments, GError **error)
{
  g_autofree char *base = g_get_current_dir ();
  char *file = NULL;

  for (guint i = 0; i < arguments->settings->len; i++)
    {
      const char *setting = g_ptr_array_index (arguments->settings, i);

      if (strcmp (setting, "config") == 0 || strcmp (setting, "config=") == 0)
        {
          set_usage (error, "-o config needs a value: config=…");
          g_free (file);
          return NULL;
        }
      if (g_str_has_prefix (setting, "config="))
        {
          g_free (file);
          file = config_path (setting + strlen ("config="), base);
        }
    }
  if (file != NULL && access (file, R_OK) != 0)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE, "-o config=%s: %s", file,
                   g_strerror (errno));
      g_clear_pointer (&file, g_free);
      return NULL;
    }
  if (file == NULL)
    {
      g_autofree char *relative = g_build_filename ("mailfs", "config", NULL);
      file = g_canonicalize_filename (relative, g_get_user_config_dir ());
    }
  return file;
}

static gboolean
load_key_file (GKeyFile *keys, const char *file, const char *account, GError **error)
{
  g_autoptr (GError) problem = NULL;
  struct stat status;

  if (g_key_file_load_from_file (keys, file, G_KEY_FILE_NONE, &problem))
    {
      if (stat (file, &status) == 0 && (status.st_mode & S_IWOTH) != 0)
        mail_log_warning ("%s can be written by everybody, who can so run programs as you: "
                          "chmod o-w it",
                          file);
      return TRUE;
    }
  if (g_error_matches (problem, G_FILE_ERROR, G_FILE_ERROR_NOENT))
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
                 "no account \"%s\", since there is no %s: create it, or give a URL such as "
                 "imaps://user@host/",
                 account, file);
  else
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE, "%s: %s", file, problem->message);
  return FALSE;
}

static gboolean
no_such_account (GKeyFile *keys, const char *file, const char *account, GError **error)
{
  g_auto (GStrv) groups = g_key_file_get_groups (keys, NULL);
  g_autoptr (GString) names = g_string_new (NULL);

  for (gsize i = 0; groups[i] != NULL; i++)
    if (g_str_has_prefix (groups[i], GROUP_PREFIX))
      g_string_append_printf (names, "%s%s", names->len > 0 ? ", " : "",
                              groups[i] + strlen (GROUP_PREFIX));
  if (names->len > 0)
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE, "no account \"%s\" in %s, which knows %s",
                 account, file, names->str);
  else
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
                 "no account \"%s\" in %s: add a group [" GROUP_PREFIX "%s] with url=", account,
                 file, account);
  return FALSE;
}

/* Applies the account's group and returns its url. */
static char *
load_account (MailConfig *config, const char *file, GError **error)
{
  g_autoptr (GKeyFile) keys = g_key_file_new ();
  g_autofree char *group = g_strconcat (GROUP_PREFIX, config->source, NULL);
  g_autofree char *base = g_path_get_dirname (file);
  g_autofree char *url = NULL;
  g_auto (GStrv) names = NULL;

  if (!load_key_file (keys, file, config->source, error))
    return NULL;
  names = g_key_file_get_keys (keys, group, NULL, NULL);
  if (names == NULL)
    return no_such_account (keys, file, config->source, error), NULL;
  for (gsize i = 0; names[i] != NULL; i++)
    {
      g_autoptr (GError) problem = NULL;
      g_autofree char *value = g_key_file_get_string (keys, group, names[i], &problem);
      gboolean known = TRUE;

      /* GLib hands out a value along with the error about a bad escape in it. */
      if (problem == NULL && strcmp (names[i], "url") == 0)
        {
          g_free (url);
          url = g_steal_pointer (&value);
        }
      else if (problem != NULL
               || !config_option_apply (config, names[i], value, base, &known, &problem))
        {
          if (known)
            g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE, "%s: [%s]: %s", file, group,
                         problem->message);
          else
            g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
                         "%s: [%s]: unknown key \"%s\", mailfs(5) lists those there are", file,
                         group, names[i]);
          return NULL;
        }
    }
  if (url == NULL)
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
                 "%s: [%s]: url= is missing, write url=imaps://user@host/", file, group);
  else
    config->account = g_strdup (config->source);
  return g_steal_pointer (&url);
}

static gboolean
check_tls (MailConfig *config, GError **error)
{
  gboolean implicit = config->scheme == MAIL_SCHEME_IMAPS || config->scheme == MAIL_SCHEME_POPS;

  if (!config->tls && implicit)
    return set_usage (error, "tls=off contradicts the URL, whose scheme means TLS: write imap:// "
                             "or pop:// for clear text");
  if (!config->tls
      && (config->tls_ca != NULL || config->tls_pin != NULL || config->tls_cert != NULL))
    return set_usage (error, "tls=off contradicts tls_ca=, tls_pin= and tls_cert=");
  if (config->tls_key != NULL && config->tls_cert == NULL)
    return set_usage (error, "tls_key= needs tls_cert=");
  if (config->tls_cert != NULL && config->tls_key == NULL)
    config->tls_key = g_strdup (config->tls_cert);
  return TRUE;
}

static gboolean
check_auth (const MailConfig *config, GError **error)
{
  gboolean pop = config->scheme == MAIL_SCHEME_POP || config->scheme == MAIL_SCHEME_POPS;
  gboolean no_user = g_strcmp0 (config->auth, "anonymous") == 0
                     || g_strcmp0 (config->auth, "external") == 0;

  if (g_strcmp0 (config->auth, "apop") == 0 && !pop)
    return set_usage (error, "auth=apop is for POP3 servers only");
  if (config->user == NULL && !no_user)
    return set_usage (error, "the URL names no user: write imaps://user@host/, with %40 for an "
                             "'@' in the name, or give auth=anonymous or auth=external");
  return TRUE;
}

/* Environment variables may hold relative paths, which mean nothing once in the background. */
static char *
home_path (const char *directory)
{
  g_autofree char *cwd = g_get_current_dir ();
  g_autofree char *path = g_build_filename (directory, "mailfs", NULL);

  return g_canonicalize_filename (path, cwd);
}

static MailConfig *
config_new (void)
{
  MailConfig *config = g_new0 (MailConfig, 1);

  config->tls = TRUE;
  config->cache_dir = home_path (g_get_user_cache_dir ());
  config->data_dir = home_path (g_get_user_data_dir ());
  config->cache_size = G_GUINT64_CONSTANT (4) << 30;
  config->layout = MAIL_LAYOUT_FLAT;
  config->eol = MAIL_EOL_CRLF;
  config->refresh = 30;
  config->timeout = 15;
  config->connections = 4;
  config->trash = g_strdup ("auto");
  config->pop3 = MAIL_POP3_KEEP;
  config->umask = 077;
  config->uid = getuid ();
  config->gid = getgid ();
  config->fuse_options = g_ptr_array_new_with_free_func (g_free);
  return config;
}

MailConfig *
mail_config_parse (int argc, char **argv, GError **error)
{
  g_autoptr (MailConfig) config = config_new ();
  g_auto (Arguments) arguments = { 0 };
  g_autofree char *file = NULL;
  g_autofree char *url = NULL;
  g_autofree char *cwd = g_get_current_dir ();
  gboolean parsed = parse_arguments (config, &arguments, argc, argv, error);

  if (config->help || config->version)
    {
      g_clear_error (error);
      return g_steal_pointer (&config);
    }
  if (!parsed)
    return NULL;
  if (arguments.positional->len != 2)
    return set_usage (error, "usage: mailfs [-fdvhV] [-o OPTIONS] SOURCE MOUNTPOINT"), NULL;
  config->source = g_strdup (g_ptr_array_index (arguments.positional, 0));
  config->mountpoint = config_path (g_ptr_array_index (arguments.positional, 1), cwd);

  file = find_config_file (&arguments, error);
  if (file == NULL)
    return NULL;
  url = config_url_looks_like_one (config->source) ? g_strdup (config->source)
                                                   : load_account (config, file, error);
  if (url == NULL || !apply_settings (config, &arguments, error))
    return NULL;
  if (!config_url_parse (config, url, error))
    {
      if (config->account != NULL)
        g_prefix_error (error, "%s: [" GROUP_PREFIX "%s]: ", file, config->account);
      return NULL;
    }
  if (!check_tls (config, error) || !check_auth (config, error))
    return NULL;
  if (config->debug)
    config->foreground = TRUE;
  if (config->read_only)
    g_ptr_array_add (config->fuse_options, g_strdup ("ro"));
  return g_steal_pointer (&config);
}

void
mail_config_free (MailConfig *config)
{
  if (config == NULL)
    return;
  g_free (config->source);
  g_free (config->url);
  g_free (config->user);
  g_free (config->host);
  g_free (config->auth);
  g_free (config->mailbox);
  g_free (config->passfile);
  g_free (config->passcmd);
  g_free (config->account);
  g_free (config->tls_ca);
  g_free (config->tls_pin);
  g_free (config->tls_cert);
  g_free (config->tls_key);
  g_free (config->cache_dir);
  g_free (config->data_dir);
  g_free (config->trash);
  g_free (config->mountpoint);
  g_ptr_array_unref (config->fuse_options);
  g_free (config);
}
