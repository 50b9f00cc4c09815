/* SPDX-License-Identifier: MIT
 *
 * The table of options: one row a name, with its type, range and place in MailConfig. The command
 * line and the config file both go through it. Any thread. Knows nothing of where text came from.
 */
#include "config/options.h"

#include "mailfs/error.h"

#include <grp.h>
#include <pwd.h>
#include <string.h>

typedef enum
{
  KIND_FLAG,   /* name, name=on, name=off */
  KIND_CLEAR,  /* the bare name unsets the flag */
  KIND_STRING, /* not empty */
  KIND_PATH,   /* made absolute */
  KIND_NUMBER, /* guint within the range */
  KIND_SIZE,   /* guint64 bytes, with K, M, G, T */
  KIND_WORD,   /* an enum, one of words */
  KIND_AUTH,
  KIND_PIN,
  KIND_UMASK,
  KIND_UID,
  KIND_GID,
  KIND_FORWARD_FLAG,  /* goes on to libfuse */
  KIND_FORWARD_VALUE, /* the same, with a value */
  KIND_REFUSE,
} OptionKind;

typedef struct
{
  const char *name;
  OptionKind kind;
  gsize offset;
  guint64 min, max;
  const char *const *words;
} Option;

static const char *const layout_words[] = { "flat", "maildir", NULL };
static const char *const eol_words[] = { "crlf", "lf", NULL };
static const char *const pop3_words[] = { "keep", "delete", NULL };

#define AT(member) G_STRUCT_OFFSET (MailConfig, member)
#define DAY 86400

static const Option options[] = {
  { "ro", KIND_FLAG, AT (read_only) },
  { "rw", KIND_CLEAR, AT (read_only) },
  { "passfile", KIND_PATH, AT (passfile) },
  { "passcmd", KIND_STRING, AT (passcmd) },
  { "auth", KIND_AUTH, AT (auth) },
  { "tls", KIND_FLAG, AT (tls) },
  { "tls_ca", KIND_PATH, AT (tls_ca) },
  { "tls_pin", KIND_PIN, AT (tls_pin) },
  { "tls_cert", KIND_PATH, AT (tls_cert) },
  { "tls_key", KIND_PATH, AT (tls_key) },
  { "cache_dir", KIND_PATH, AT (cache_dir) },
  { "cache_size", KIND_SIZE, AT (cache_size), 1 << 20, G_GUINT64_CONSTANT (1) << 60 },
  { "layout", KIND_WORD, AT (layout), .words = layout_words },
  { "eol", KIND_WORD, AT (eol), .words = eol_words },
  { "refresh", KIND_NUMBER, AT (refresh), 1, 7 * DAY },
  { "timeout", KIND_NUMBER, AT (timeout), 1, 3600 },
  { "connections", KIND_NUMBER, AT (connections), 1, 32 },
  { "trash", KIND_STRING, AT (trash) },
  { "pop3", KIND_WORD, AT (pop3), .words = pop3_words },
  { "subscribed", KIND_FLAG, AT (subscribed) },
  { "offline", KIND_FLAG, AT (offline) },
  { "sync", KIND_FLAG, AT (sync) },
  { "async", KIND_CLEAR, AT (sync) },
  { "uid", KIND_UID, AT (uid) },
  { "gid", KIND_GID, AT (gid) },
  { "umask", KIND_UMASK, AT (umask) },
  { "debug", KIND_FLAG, AT (debug) },

  { "allow_other", KIND_FORWARD_FLAG },
  { "allow_root", KIND_FORWARD_FLAG },
  { "auto_unmount", KIND_FORWARD_FLAG },
  { "default_permissions", KIND_FORWARD_FLAG },
  { "noexec", KIND_FORWARD_FLAG },
  { "fsname", KIND_FORWARD_VALUE },
  { "subtype", KIND_FORWARD_VALUE },
  { "max_read", KIND_FORWARD_VALUE },
  { "context", KIND_FORWARD_VALUE },
  { "fscontext", KIND_FORWARD_VALUE },
  { "defcontext", KIND_FORWARD_VALUE },
  { "rootcontext", KIND_FORWARD_VALUE },

  { "remount", KIND_REFUSE },
};

/* Read by mount(8), systemd or init, or without a meaning here: no file is a device or setuid, and
   an access time never changes. */
static const char *const ignored[] = {
  "_netdev",    "_rnetdev",    "auto",          "noauto",   "nofail",     "user",
  "nouser",     "users",       "nousers",       "owner",    "noowner",    "group",
  "nogroup",    "defaults",    "exec",          "suid",     "nosuid",     "dev",
  "nodev",      "atime",       "noatime",       "diratime", "nodiratime", "relatime",
  "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime", "iversion",
  "noiversion", "mand",        "nomand",        "silent",   "loud",       "dirsync",
  "nonempty",   "comment",     "helper",        "uhelper",  NULL,
};

static const char *const mechanisms[] = {
  "plain", "login",   "cram-md5",    "scram-sha-1", "scram-sha-256", "external", "anonymous",
  "apop",  "xoauth2", "oauthbearer", NULL,
};

static gboolean usage (GError **error, const char *format, ...) G_GNUC_PRINTF (2, 3);

static gboolean
usage (GError **error, const char *format, ...)
{
  va_list arguments;

  va_start (arguments, format);
  g_clear_error (error);
  if (error != NULL)
    *error = g_error_new_valist (MAIL_ERROR, MAIL_ERROR_USAGE, format, arguments);
  va_end (arguments);
  return FALSE;
}

const char *
config_auth_name (const char *wire)
{
  for (gsize i = 0; mechanisms[i] != NULL; i++)
    if (g_ascii_strcasecmp (mechanisms[i], wire) == 0)
      return mechanisms[i];
  return NULL;
}

char *
config_path (const char *path, const char *base)
{
  if (strcmp (path, "~") == 0)
    return g_strdup (g_get_home_dir ());
  if (g_str_has_prefix (path, "~/"))
    return g_canonicalize_filename (path + 2, g_get_home_dir ());
  return g_canonicalize_filename (path, base);
}

static gboolean
set_flag (gboolean *field, const char *name, const char *value, GError **error)
{
  static const char *const on[] = { "on", "true", "yes", "1", NULL };
  static const char *const off[] = { "off", "false", "no", "0", NULL };

  if (value == NULL || g_strv_contains (on, value))
    *field = TRUE;
  else if (g_strv_contains (off, value))
    *field = FALSE;
  else
    return usage (error, "%s=%s: write on or off", name, value);
  return TRUE;
}

static gboolean
set_size (guint64 *field, const Option *option, const char *value, GError **error)
{
  static const char units[] = "KMGT";
  g_autofree char *digits = g_ascii_strup (value, -1);
  gsize length = strlen (digits);
  guint shift = 0;
  guint64 number;
  const char *unit;

  if (length > 1 && (unit = strchr (units, digits[length - 1])) != NULL)
    {
      shift = 10 * (guint)(unit - units + 1);
      digits[length - 1] = '\0';
    }
  if (!g_ascii_string_to_unsigned (digits, 10, 0, option->max >> shift, &number, NULL)
      || number << shift < option->min)
    return usage (error, "%s=%s: write a size such as 512M or 4G, at least 1M", option->name,
                  value);
  *field = number << shift;
  return TRUE;
}

static gboolean
set_word (int *field, const Option *option, const char *value, GError **error)
{
  g_autofree char *choices = NULL;

  for (int i = 0; option->words[i] != NULL; i++)
    if (strcmp (option->words[i], value) == 0)
      {
        *field = i;
        return TRUE;
      }
  choices = g_strjoinv (" or ", (char **)option->words);
  return usage (error, "%s=%s: write %s", option->name, value, choices);
}

/* 32 bytes of SHA-256 as base64 (also after "sha256//", as curl has it) or as hexadecimal with or
   without colons; kept as base64. */
static gboolean
set_pin (char **field, const char *value, GError **error)
{
  const char *text = g_str_has_prefix (value, "sha256//") ? value + strlen ("sha256//") : value;
  guchar digest[32];
  gsize n = 0;

  if (strlen (text) == 44 && text[43] == '=')
    {
      g_autofree guchar *bytes = g_base64_decode (text, &n);
      g_autofree char *again = g_base64_encode (bytes, n);

      if (n == sizeof digest && strcmp (again, text) == 0)
        {
          g_free (*field);
          *field = g_steal_pointer (&again);
          return TRUE;
        }
    }
  for (n = 0; n < sizeof digest && g_ascii_isxdigit (text[0]) && g_ascii_isxdigit (text[1]); n++)
    {
      digest[n] = (guchar)(g_ascii_xdigit_value (text[0]) << 4 | g_ascii_xdigit_value (text[1]));
      text += 2;
      if (*text == ':' && text[1] != '\0')
        text++;
    }
  if (n != sizeof digest || *text != '\0')
    return usage (error,
                  "tls_pin=%s: write the SHA-256 of the server's public key, as 64 hexadecimal "
                  "digits or 44 characters of base64",
                  value);
  g_free (*field);
  *field = g_base64_encode (digest, sizeof digest);
  return TRUE;
}

static gboolean
set_umask (mode_t *field, const char *value, GError **error)
{
  guint64 mask;

  if (!g_ascii_string_to_unsigned (value, 8, 0, 0777, &mask, NULL))
    return usage (error, "umask=%s: write an octal mask such as 077", value);
  *field = (mode_t)mask;
  return TRUE;
}

static gboolean
set_uid (uid_t *field, const char *value, GError **error)
{
  guint64 id;
  const struct passwd *entry;

  if (g_ascii_string_to_unsigned (value, 10, 0, G_MAXUINT32 - 1, &id, NULL))
    *field = (uid_t)id;
  else if ((entry = getpwnam (value)) != NULL)
    *field = entry->pw_uid;
  else
    return usage (error, "uid=%s: no such user", value);
  return TRUE;
}

static gboolean
set_gid (gid_t *field, const char *value, GError **error)
{
  guint64 id;
  const struct group *entry;

  if (g_ascii_string_to_unsigned (value, 10, 0, G_MAXUINT32 - 1, &id, NULL))
    *field = (gid_t)id;
  else if ((entry = getgrnam (value)) != NULL)
    *field = entry->gr_gid;
  else
    return usage (error, "gid=%s: no such group", value);
  return TRUE;
}

/* libfuse splits its options at commas again, so those inside a value get a backslash. */
static gboolean
forward (MailConfig *config, const Option *option, const char *value, GError **error)
{
  gsize length = strlen (option->name);
  gboolean on = TRUE;
  GString *text;

  if (option->kind == KIND_FORWARD_FLAG && !set_flag (&on, option->name, value, error))
    return FALSE;
  for (guint i = 0; i < config->fuse_options->len; i++)
    {
      const char *old = g_ptr_array_index (config->fuse_options, i);

      if (strncmp (old, option->name, length) == 0 && (old[length] == '=' || old[length] == '\0'))
        g_ptr_array_remove_index (config->fuse_options, i--);
    }
  if (!on)
    return TRUE;
  text = g_string_new (option->name);
  if (option->kind == KIND_FORWARD_VALUE)
    g_string_append_c (text, '=');
  for (const char *p = option->kind == KIND_FORWARD_VALUE ? value : ""; *p != '\0'; p++)
    {
      if (*p == ',' || *p == '\\')
        g_string_append_c (text, '\\');
      g_string_append_c (text, *p);
    }
  g_ptr_array_add (config->fuse_options, g_string_free (text, FALSE));
  return TRUE;
}

static gboolean
apply (MailConfig *config, const Option *option, const char *value, const char *base,
       GError **error)
{
  gpointer field = G_STRUCT_MEMBER_P (config, option->offset);
  guint64 number;

  switch (option->kind)
    {
    case KIND_FLAG:
      return set_flag (field, option->name, value, error);
    case KIND_CLEAR:
      *(gboolean *)field = FALSE;
      return TRUE;
    case KIND_STRING:
      g_free (*(char **)field);
      *(char **)field = g_strdup (value);
      return TRUE;
    case KIND_PATH:
      g_free (*(char **)field);
      *(char **)field = config_path (value, base);
      return TRUE;
    case KIND_NUMBER:
      if (!g_ascii_string_to_unsigned (value, 10, option->min, option->max, &number, NULL))
        return usage (error, "%s=%s: write a whole number from %u to %u", option->name, value,
                      (guint)option->min, (guint)option->max);
      *(guint *)field = (guint)number;
      return TRUE;
    case KIND_SIZE:
      return set_size (field, option, value, error);
    case KIND_WORD:
      return set_word (field, option, value, error);
    case KIND_AUTH:
      if (config_auth_name (value) == NULL)
        {
          g_autofree char *all = g_strjoinv (", ", (char **)mechanisms);
          return usage (error, "auth=%s: mailfs knows %s", value, all);
        }
      g_free (*(char **)field);
      *(char **)field = g_strdup (config_auth_name (value));
      return TRUE;
    case KIND_PIN:
      return set_pin (field, value, error);
    case KIND_UMASK:
      return set_umask (field, value, error);
    case KIND_UID:
      return set_uid (field, value, error);
    case KIND_GID:
      return set_gid (field, value, error);
    case KIND_FORWARD_FLAG:
    case KIND_FORWARD_VALUE:
      return forward (config, option, value, error);
    case KIND_REFUSE:
      return usage (error, "%s: a mail mount cannot be changed in place, unmount it first",
                    option->name);
    default:
      return TRUE;
    }
}

static gboolean
takes_value (OptionKind kind)
{
  return kind >= KIND_STRING && kind <= KIND_GID ? TRUE : kind == KIND_FORWARD_VALUE;
}

static gboolean
takes_none (OptionKind kind)
{
  return kind == KIND_CLEAR;
}

gboolean
config_option_apply (MailConfig *config, const char *name, const char *value, const char *base,
                     gboolean *known_out, GError **error)
{
  *known_out = TRUE;
  if (g_strv_contains (ignored, name) || g_str_has_prefix (name, "x-")
      || g_str_has_prefix (name, "X-"))
    return TRUE;
  for (gsize i = 0; i < G_N_ELEMENTS (options); i++)
    {
      const Option *option = &options[i];

      if (strcmp (option->name, name) != 0)
        continue;
      if (takes_value (option->kind) && (value == NULL || *value == '\0'))
        return usage (error, "%s needs a value: %s=…", name, name);
      if (takes_none (option->kind) && value != NULL)
        return usage (error, "%s takes no value", name);
      return apply (config, option, value, base, error);
    }
  *known_out = FALSE;
  return FALSE;
}
