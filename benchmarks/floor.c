/* A lower bound for the CPU time of any SMTP server on this kernel. It makes one recv and one send per chunk, with
   level-triggered epoll, and parses only what the reply depends on. It assumes that a command line, and the line
   with the final dot, is never split over two chunks, which holds for the senders here only. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_FD 65536

static char chunk[65536];
static char in_body[MAX_FD];

static void send_text(int fd, const char *text)
{
    if (send(fd, text, strlen(text), MSG_NOSIGNAL) < 0)
        perror("send");
}

static void handle_chunk(int fd)
{
    static const char ok[] = "250 2.0.0 Ok\r\n", go[] = "354 Go on\r\n";
    char reply[8192] = "", *to = reply;
    ssize_t got = recv(fd, chunk, sizeof chunk, 0);

    if (got <= 0) {
        close(fd);
        return;
    }
    if (in_body[fd]) {
        if (got >= 3 && memcmp(chunk + got - 3, ".\r\n", 3) == 0) {
            in_body[fd] = 0;
            send_text(fd, ok);
        }
        return;
    }
    for (char *line = chunk, *end; (end = memchr(line, '\n', chunk + got - line)); line = end + 1) {
        if (to > reply + sizeof reply - 64)
            break;
        if (*line == 'Q') {
            strcpy(to, "221 Bye\r\n");
            send_text(fd, reply);
            close(fd);
            return;
        }
        in_body[fd] = *line == 'D';
        to = stpcpy(to, in_body[fd] ? go : ok);
    }
    send_text(fd, reply);
}

int main(int argc, char **argv)
{
    int one = 1, listener, epoll;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event event = {.events = EPOLLIN}, events[256];

    if (argc < 2)
        return 64;
    address.sin_port = htons(atoi(argv[1]));
    /* As many processes as asked for, each with a socket of its own: the kernel deals out the connections. */
    for (int workers = argc > 2 ? atoi(argv[2]) : 1; workers > 1 && fork() > 0; workers--)
        ;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    epoll = epoll_create1(0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("bind");
        return 71;
    }
    event.data.fd = listener;
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) {
                handle_chunk(fd);
            } else if ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                if (fd >= MAX_FD) {
                    close(fd);
                    continue;
                }
                in_body[fd] = 0;
                event.data.fd = fd;
                epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
                send_text(fd, "220 floor ESMTP\r\n");
            }
        }
    }
}
