import java.io.BufferedInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.Socket;
import java.nio.channels.ClosedChannelException;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.util.Locale;
import java.util.concurrent.Phaser;

/** A server on the socket that is its standard input. */
public final class Shop {
    static final String VERSION = "v0000";
    static volatile boolean stopping;

    public static void main(String[] args) throws Exception {
        ServerSocketChannel server = (ServerSocketChannel) System.inheritedChannel();
        if (server == null) {
            throw new IOException("standard input is no listening socket");
        }
        Phaser busy = new Phaser(2); // whoever stops the server, and this thread
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            stopping = true;
            try {
                server.close();
            } catch (IOException e) {
                // It ends anyway.
            }
            busy.arriveAndAwaitAdvance();
        }));
        try {
            while (true) {
                SocketChannel client = server.accept();
                busy.register();
                Thread.ofVirtual().start(() -> {
                    serve(client.socket());
                    busy.arriveAndDeregister();
                });
            }
        } catch (ClosedChannelException e) {
            busy.arriveAndDeregister();
        }
    }

    static void serve(Socket client) {
        try (client) {
            InputStream in = new BufferedInputStream(client.getInputStream());
            OutputStream out = client.getOutputStream();
            boolean last = false;
            while (!last) {
                if (!await(client, in)) {
                    return;
                }
                boolean post = line(in).startsWith("POST ");
                int length = 0;
                for (String header = line(in); !header.isEmpty(); header = line(in)) {
                    header = header.toLowerCase(Locale.ROOT);
                    if (header.startsWith("content-length:")) {
                        length = Integer.parseInt(header.substring(15).trim());
                    } else if (header.startsWith("connection:")) {
                        last = header.contains("close");
                    }
                }
                byte[] body = in.readNBytes(length);
                if (!post) {
                    body = (VERSION + " pid " + ProcessHandle.current().pid() + "\n").getBytes(StandardCharsets.UTF_8);
                }
                last |= stopping;
                String head = "HTTP/1.1 200 OK\r\nX-Version: " + VERSION + "\r\nContent-Length: " + body.length
                        + (last ? "\r\nConnection: close" : "") + "\r\n\r\n";
                byte[] start = head.getBytes(StandardCharsets.US_ASCII);
                byte[] answer = java.util.Arrays.copyOf(start, start.length + body.length);
                System.arraycopy(body, 0, answer, start.length, body.length);
                out.write(answer);
            }
        } catch (IOException e) {
            // The client has gone.
        }
    }

    /** Waits for the next request; false when there will be none. */
    static boolean await(Socket client, InputStream in) throws IOException {
        client.setSoTimeout(200);
        while (true) {
            in.mark(1);
            try {
                int b = in.read();
                in.reset();
                client.setSoTimeout(0);
                return b >= 0;
            } catch (java.net.SocketTimeoutException e) {
                if (stopping) {
                    return false;
                }
            }
        }
    }

    static String line(InputStream in) throws IOException {
        StringBuilder line = new StringBuilder();
        for (int b = in.read(); b != '\n'; b = in.read()) {
            if (b < 0) {
                throw new IOException("cut off");
            }
            if (b != '\r') {
                line.append((char) b);
            }
        }
        return line.toString();
    }
}
