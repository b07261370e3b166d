package headrace;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.producer.Partitioner;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.Cluster;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.utils.Utils;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonFactory;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonParser;

/**
 * Places a record whose key is a JSON object: in the partition that its field `partition` names, or else where its first
 * field's text alone would be placed. Kafka itself would place it by the whole key.
 */
public class KeyPartitioner implements Partitioner {
    private final JsonFactory json = new JsonFactory();

    @Override
    public int partition(String topic, Object key, byte[] keyBytes, Object value, byte[] valueBytes, Cluster cluster) {
        try (JsonParser fields = json.createParser(keyBytes)) {
            fields.nextToken();
            fields.nextToken();
            String entity = fields.nextTextValue();
            while (fields.nextFieldName() != null) {
                if (fields.currentName().equals("partition")) {
                    return fields.nextIntValue(-1);
                }
                fields.nextToken();
            }
            byte[] alone = entity.getBytes(StandardCharsets.UTF_8);
            return Utils.toPositive(Utils.murmur2(alone)) % cluster.partitionCountForTopic(topic);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    @Override
    public void configure(Map<String, ?> settings) {}

    @Override
    public void close() {}
}
