package headrace;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.producer.Partitioner;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.Cluster;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.utils.Utils;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper;

/** Places a record whose key is a JSON object: by its `partition`, or where its first field's text alone would be placed. */
public class KeyPartitioner implements Partitioner {
    private final ObjectMapper json = new ObjectMapper();

    @Override
    public int partition(String topic, Object key, byte[] keyBytes, Object value, byte[] valueBytes, Cluster cluster) {
        try {
            JsonNode fields = json.readTree(keyBytes);
            if (fields.has("partition")) {
                return fields.get("partition").intValue();
            }
            byte[] entity = fields.elements().next().textValue().getBytes(StandardCharsets.UTF_8);
            return Utils.toPositive(Utils.murmur2(entity)) % cluster.partitionCountForTopic(topic);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    @Override
    public void configure(Map<String, ?> settings) {}

    @Override
    public void close() {}
}
