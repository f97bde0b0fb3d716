/* A plugin in C: shout(text) -> TEXT.
 *
 * It reads and writes frames on descriptor 3, as docs/reference/plugin-protocol.md lays them out: four bytes of length,
 * most significant first, then one msgpack array that begins with the message's tag. All of msgpack that it needs is
 * below: it reads arrays, integers and strings, and writes these and maps.
 *
 * Everything is bounded by the frame it came in; a frame that makes no sense ends the program.
 */

#include <ctype.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LOAD = 1, CALL = 2, STOP = 6, HELLO = 20, LOADED = 21, RESULT = 23, ERROR = 24, BYE = 29 };
enum { HOST = 3, PROTOCOL = 1, MAX_FRAME = 64 << 20 };

/* --- Bytes to and from the host ------------------------------------------------------------------------------- */

static void die(const char *why) {
    fprintf(stderr, "shout: %s\n", why);
    exit(70);
}

/* Read exactly `size` bytes. At the end of the stream the host is gone, and so is the reason to be. */
static void read_all(uint8_t *into, size_t size) {
    while (size > 0) {
        ssize_t got = read(HOST, into, size);
        if (got == 0) exit(0);
        if (got < 0) die("the host cannot be read from");
        into += got;
        size -= (size_t)got;
    }
}

static void write_all(const uint8_t *from, size_t size) {
    while (size > 0) {
        ssize_t put = write(HOST, from, size);
        if (put <= 0) die("the host cannot be written to");
        from += put;
        size -= (size_t)put;
    }
}

/* --- Reading msgpack ------------------------------------------------------------------------------------------ */

struct reader {
    const uint8_t *at, *end;
};

static uint64_t take(struct reader *r, int size) {
    uint64_t value = 0;
    if (r->end - r->at < size) die("a frame that ends too soon");
    while (size-- > 0) value = value << 8 | *r->at++;
    return value;
}

static const uint8_t *take_bytes(struct reader *r, uint64_t size) {
    const uint8_t *start = r->at;
    if ((uint64_t)(r->end - r->at) < size) die("a frame that ends too soon");
    r->at += size;
    return start;
}

/* Each of these reads a value of its type, or says no and leaves the reader where it was. */

static int read_array(struct reader *r, uint64_t *count) {
    if (r->at >= r->end) return 0;
    uint8_t kind = *r->at;
    if ((kind & 0xf0) == 0x90) return r->at++, *count = kind & 0x0f, 1;
    if (kind == 0xdc || kind == 0xdd) return r->at++, *count = take(r, kind == 0xdc ? 2 : 4), 1;
    return 0;
}

static int read_unsigned(struct reader *r, uint64_t *value) {
    if (r->at >= r->end) return 0;
    uint8_t kind = *r->at;
    if (kind < 0x80) return r->at++, *value = kind, 1;
    if (kind >= 0xcc && kind <= 0xcf) return r->at++, *value = take(r, 1 << (kind - 0xcc)), 1;
    return 0;
}

static int read_string(struct reader *r, const uint8_t **text, uint64_t *size) {
    if (r->at >= r->end) return 0;
    uint8_t kind = *r->at;
    if ((kind & 0xe0) == 0xa0) {
        r->at++;
        *size = kind & 0x1f;
    } else if (kind >= 0xd9 && kind <= 0xdb) {
        r->at++;
        *size = take(r, 1 << (kind - 0xd9));
    } else {
        return 0;
    }
    *text = take_bytes(r, *size);
    return 1;
}

/* --- Writing msgpack: into a buffer that grows ---------------------------------------------------------------- */

struct writer {
    uint8_t *data;
    size_t size, room;
};

static void put_bytes(struct writer *w, const void *bytes, size_t size) {
    if (w->room - w->size < size) {
        w->room = (w->size + size) * 2;
        w->data = realloc(w->data, w->room);
        if (w->data == NULL) die("out of memory");
    }
    memcpy(w->data + w->size, bytes, size);
    w->size += size;
}

static void put_number(struct writer *w, uint8_t kind, uint64_t value, int size) {
    uint8_t bytes[9] = {kind};
    for (int i = size; i > 0; i--, value >>= 8) bytes[i] = (uint8_t)value;
    put_bytes(w, bytes, (size_t)size + 1);
}

static void put_array(struct writer *w, unsigned count) { put_number(w, (uint8_t)(0x90 | count), 0, 0); }
static void put_map(struct writer *w, unsigned count) { put_number(w, (uint8_t)(0x80 | count), 0, 0); }
static void put_unsigned(struct writer *w, uint64_t value) { put_number(w, 0xcf, value, 8); }

static void put_string(struct writer *w, const void *text, size_t size) {
    put_number(w, 0xdb, size, 4);
    put_bytes(w, text, size);
}

static void put_text(struct writer *w, const char *text) { put_string(w, text, strlen(text)); }

static void start(struct writer *w, unsigned fields, unsigned tag) {
    w->size = 0;
    put_bytes(w, "\0\0\0\0", 4); /* the length, once it is known */
    put_array(w, fields + 1);
    put_unsigned(w, tag);
}

static void send_frame(struct writer *w) {
    size_t body = w->size - 4;
    if (body > MAX_FRAME) die("an answer that is too long");
    for (int i = 3; i >= 0; i--, body >>= 8) w->data[i] = (uint8_t)body;
    write_all(w->data, w->size);
}

/* --- The plugin ----------------------------------------------------------------------------------------------- */

static void say_error(struct writer *w, uint64_t call, const char *type, const char *message) {
    start(w, 2, ERROR);
    put_unsigned(w, call);
    put_map(w, 6);
    put_text(w, "kind"), put_text(w, "exception");
    put_text(w, "module"), put_text(w, "builtins"); /* the host raises a ValueError for "ValueError" */
    put_text(w, "type"), put_text(w, type);
    put_text(w, "message"), put_text(w, message);
    put_text(w, "traceback"), put_text(w, "");
    put_text(w, "notes"), put_array(w, 0);
    send_frame(w);
}

static void answer(struct reader *r, struct writer *w) {
    const uint8_t *name, *text;
    uint64_t call, size, count;
    if (!read_unsigned(r, &call) || !read_string(r, &name, &size)) die("a call without its number or name");
    if (size != 5 || memcmp(name, "shout", 5) != 0) {
        say_error(w, call, "LookupError", "there is only shout");
    } else if (!read_array(r, &count) || count != 1 || !read_string(r, &text, &size)) {
        say_error(w, call, "TypeError", "shout takes one text");
    } else {
        uint8_t *loud = malloc(size + 1);
        if (loud == NULL) die("out of memory");
        for (uint64_t i = 0; i < size; i++) loud[i] = (uint8_t)(text[i] < 0x80 ? toupper(text[i]) : text[i]);
        start(w, 2, RESULT);
        put_unsigned(w, call);
        put_string(w, loud, size);
        free(loud);
        send_frame(w);
    }
}

int main(void) {
    struct writer w = {NULL, 0, 0};
    uint8_t *frame = NULL;

    start(&w, 2, HELLO);
    put_unsigned(&w, PROTOCOL);
    put_map(&w, 2);
    put_text(&w, "runtime"), put_text(&w, "c");
    put_text(&w, "version"), put_text(&w, "1");
    send_frame(&w);

    for (;;) {
        uint8_t header[4];
        read_all(header, 4);
        size_t size = (size_t)header[0] << 24 | (size_t)header[1] << 16 | (size_t)header[2] << 8 | header[3];
        if (size == 0 || size > MAX_FRAME) die("a frame of no size");
        free(frame);
        frame = malloc(size);
        if (frame == NULL) die("out of memory");
        read_all(frame, size);

        struct reader r = {frame, frame + size};
        uint64_t count, tag;
        if (!read_array(&r, &count) || !read_unsigned(&r, &tag)) die("a frame that is no message");
        switch (tag) {
        case LOAD: /* its settings are of no interest here */
            start(&w, 1, LOADED);
            put_map(&w, 2);
            put_text(&w, "functions"), put_map(&w, 1), put_text(&w, "shout"), put_text(&w, "(text: str) -> str");
            put_text(&w, "missing"), put_array(&w, 0);
            send_frame(&w);
            break;
        case CALL:
            answer(&r, &w);
            break;
        case STOP:
            start(&w, 0, BYE);
            send_frame(&w);
            return 0;
        default: /* CANCEL: every answer is there before the next frame is read, so there is nothing to cancel */
            break;
        }
    }
}
